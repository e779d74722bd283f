"""Every kind of model on the page, end to end in a real browser: what is sent, and what is drawn of the answer."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys

import httpx
import pytest

from deepseek.data.image.normalize import Normalize
from deepseek.data.image.resize import Letterbox, Resize
from deepseek.data.table_columns import TableColumns
from deepseek.serve import BackgroundServer
from tests.page_browser import browser, choose, wait_ready
from tests.toy_forms import MODELS, TOKENIZE, bundle, file_bytes, picture
from tests.toy_speech import speech_bundle

COLUMNS = TableColumns(
    numeric=("size", "weight"),
    categorical=("colour",),
    ignore=("kind",),
    means=(1.0, 2.0),
    stds=(1.0, 0.5),
    categories=(("blue", "red"),),
    one_hot=True,
)
PIPELINES = {
    "animals": ("resnet", "image_classification", [Resize(size=32), Normalize()], {}),
    "finder": ("yolo", "detection", [Letterbox(size=64)], {"min_score": 0.001, "max_detections": 5}),
    "painter": ("unet", "segmentation", [Resize(size=32), Normalize()], {}),
    "table": ("mlp", "classification", [COLUMNS], {}),
    "words": ("bert", "classification", [TOKENIZE], {}),
    "plain": ("mlp", "classification", None, {}),
    "atoms": ("schnet", "energies_forces", None, {}),
    "volume": ("unet3d", "segmentation", [Resize(size=8), Normalize(mean=(0.3,), std=(0.3,))], {}),
    "pairs": ("clip", "contrastive", [TOKENIZE, Resize(size=16), Normalize()], {}),
    "dream": ("dit", "diffusion", None, {"sample_steps": 2}),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    for name, (model, task, stages, settings) in PIPELINES.items():
        values = {**MODELS[model], **({"input_shape": [5]} if name == "table" else {})}
        bundle(folder / name, values, task, stages, **settings)
    speech_bundle(folder / "speech")
    with BackgroundServer({name: folder / name for name in (*PIPELINES, "speech")}) as running:
        wait_ready(running.url)
        yield running


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture
def page(chromium, server):
    opened = chromium.open(server.url)
    opened.wait_for_selector("#ask")
    yield opened
    chromium.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "it's a photo.png"
    path.write_bytes(file_bytes(picture(90, 160)))
    return path


def run(page, wanted):
    """Run the model and return the server's first prediction as the page shows it (long files are cut)."""
    with page.expect_response(lambda response: ":predict" in response.url):
        page.click("#run")
    page.wait_for_selector(f"#result {wanted}")
    return json.loads(page.text_content("#result .raw pre"))


def bars(page):
    return [text.split("\n") for text in page.locator("#result .bars li").all_inner_texts()]


def as_bars(pairs):
    return [[str(name), f"{share * 100:.1f} %"] for name, share in pairs]


def test_a_pictures_classes_are_bars(page, server, photo):
    choose(page, "animals")
    assert page.inner_text("#kind") == "picture → classes"
    page.set_input_files("#file", photo)
    answer = run(page, ".bars")
    direct = httpx.post(
        f"{server.url}/v1/models/animals:predict",
        content=photo.read_bytes(),
        headers={"content-type": "application/octet-stream"},
    ).json()["predictions"][0]
    assert answer == direct
    assert bars(page) == as_bars([(one["label"], one["score"]) for one in answer["classes"]])
    assert re.match(r"answered in \d+ ms · animals 1", page.inner_text("#numbers"))


def test_boxes_lie_where_the_server_says(page, photo):
    choose(page, "finder")
    page.set_input_files("#file", photo)
    answer = run(page, "svg rect")
    drawn = page.evaluate(
        "[...document.querySelectorAll('#result svg rect')]"
        ".map(r => ['x', 'y', 'width', 'height'].map(n => +r.getAttribute(n)))"
    )
    wanted = [[x, y, right - x, bottom - y] for x, y, right, bottom in (one["box"] for one in answer["objects"])]
    assert [[round(one, 3) for one in row] for row in drawn] == [[round(one, 3) for one in row] for row in wanted]
    assert page.get_attribute("#result svg", "viewBox") == "0 0 160 90"
    sizes = page.evaluate(
        "['img', 'svg'].map(n => document.querySelector('#result .stack ' + n).getBoundingClientRect().width)"
    )
    assert abs(sizes[0] - sizes[1]) < 1


def test_a_mask_is_painted_pixel_by_pixel(page, photo):
    choose(page, "painter")
    page.set_input_files("#file", photo)
    answer = run(page, "#mask[data-painted]")
    counts = page.evaluate(
        "(() => { const c = document.querySelector('#mask');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const n = {}; for (let i = 0; i < d.length; i += 4) { const k = d[i + 3] ? d.slice(i, i + 3).join() : 'clear';"
        "n[k] = (n[k] || 0) + 1; } return n; })()"
    )
    assert sorted(counts.values()) == sorted(one["pixels"] for one in answer["classes"] if one["pixels"])
    assert counts.get("clear", 0) == answer["classes"][0]["pixels"]
    page.locator("#opacity").fill("0.2")
    assert page.evaluate("document.querySelector('#mask').style.opacity") == "0.2"


def test_a_row_is_a_form_with_the_training_data_in_it(page):
    choose(page, "table")
    labels = page.locator("#ask .grid label").all_inner_texts()
    assert labels == ["size", "weight", "colour", "kind"]
    assert [page.get_by_label(name, exact=True).input_value() for name in labels] == ["1", "2", "blue", ""]
    page.get_by_label("size", exact=True).fill("")
    page.get_by_label("colour", exact=True).fill("red")
    with page.expect_request(lambda request: ":predict" in request.url) as caught:
        page.press("#field-2", "Enter")
    page.wait_for_selector("#result .bars")
    assert json.loads(caught.value.post_data) == {"instances": [{"size": None, "weight": 2, "colour": "red"}]}
    page.get_by_label("weight", exact=True).fill("heavy")
    page.click("#run")
    page.wait_for_selector("#error:visible")
    assert "instances.0.row.weight" in page.inner_text("#error") or "weight" in page.inner_text("#error")
    page.click("#example")
    assert page.get_by_label("weight", exact=True).input_value() == "2"


def test_a_text_is_read(page):
    choose(page, "words")
    page.fill("#text", "the room was lovely")
    answer = run(page, ".bars")
    assert bars(page) == as_bars([(one["label"], one["score"]) for one in answer["classes"]])


def test_tensors_are_json_and_a_wrong_one_is_told(page):
    choose(page, "plain")
    assert json.loads(page.input_value("#json")).keys() == {"x"} or page.input_value("#json").startswith("{")
    run(page, ".bars")
    page.fill("#json", "{")
    page.click("#run")
    page.wait_for_selector("#error:visible")
    assert "This is not JSON" in page.inner_text("#error")
    page.fill("#json", '{"nothing": [1]}')
    page.click("#run")
    page.locator("#error", has_text="nothing").wait_for()


def test_energies_pairs_volumes_and_pictures(page):
    choose(page, "atoms")
    answer = run(page, "table")
    assert page.locator("#result tbody tr").count() == len(answer["forces"]) == 2
    choose(page, "pairs")
    answer = run(page, "table")
    assert len(answer["similarity"]) == page.locator("#result table").count() == 1
    choose(page, "volume")
    page.click("#example")
    answer = run(page, "a[download]")
    assert bars(page) == as_bars([(one["label"], one["share"]) for one in answer["classes"]])
    choose(page, "dream")
    run(page, "img[src^='blob:']")
    assert page.evaluate("document.querySelector('#result img').naturalWidth") == 8


def test_the_microphone_is_recorded_to_a_wav_file(page):
    choose(page, "speech")
    page.click("#record")
    page.wait_for_function("() => document.querySelector('#record').dataset.text === 'stopRecording'")
    page.wait_for_timeout(700)
    page.click("#record")
    page.wait_for_selector("audio")
    with page.expect_request(lambda request: ":predict" in request.url) as caught:
        answer = run(page, "#said")
    data = caught.value.post_data_buffer
    assert data is None or data[:4] == b"RIFF"
    assert page.inner_text("#said") == answer["text"]


def test_speech_is_recognised_while_it_is_spoken(page):
    choose(page, "speech")
    page.click("#listen")
    page.locator(".live .numbers", has_text="real-time factor").wait_for()
    page.click("#listen")
    page.wait_for_function("() => document.querySelector('#listen').dataset.text === 'listen'")
    assert page.inner_text("#live").strip()
    assert page.is_hidden("#error")


def test_what_is_copied_does_the_same(page, photo):
    choose(page, "finder")
    page.set_input_files("#file", photo)
    answer = run(page, "svg rect")
    page.click("#command summary")
    for tab, command in (("#as-curl", ["sh", "-c"]), ("#as-python", [sys.executable, "-c"])):
        page.click(tab)
        done = subprocess.run(
            [*command, page.inner_text("#code")],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            cwd=photo.parent,
        )
        assert json.loads(done.stdout)["predictions"][0] == answer
    choose(page, "table")
    done = subprocess.run([sys.executable, "-c", page.inner_text("#code")], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["model"] == "table"


def test_a_file_that_is_none_is_refused_in_the_servers_words(page, tmp_path):
    choose(page, "animals")
    page.click("#run")
    page.locator("#error", has_text="Choose a file first").wait_for()
    (tmp_path / "no.png").write_bytes(struct.pack("<I", 7) * 40)
    page.set_input_files("#file", tmp_path / "no.png")
    page.click("#run")
    page.locator("#error", has_text="'image' is of no kind that is read").wait_for()


def test_the_answer_follows_the_language(page, photo):
    choose(page, "animals")
    page.set_input_files("#file", photo)
    run(page, ".bars")
    page.click("#language")
    assert page.inner_text("#result h2") == "结果" and page.inner_text("#run") == "运行"
    assert page.inner_text("#kind") == "图片 → 类别"


@pytest.mark.parametrize("width", [320, 760])
def test_no_kind_runs_out_of_the_window(chromium, server, photo, width):
    narrow = chromium.open(server.url, viewport={"width": width, "height": 740}, locale="zh-CN")
    narrow.wait_for_selector("#ask")
    for name, wanted in (
        ("finder", "svg rect"),
        ("painter", "#mask"),
        ("speech", None),
        ("table", ".bars"),
        ("atoms", "table"),
    ):
        choose(narrow, name)
        if name in ("finder", "painter"):
            narrow.set_input_files("#file", photo)
        if wanted:
            run(narrow, wanted)
        assert narrow.evaluate("document.documentElement.scrollWidth") <= width, name
    chromium.close()
