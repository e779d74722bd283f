"""Which folders are served, under which names, and that links lead nowhere else."""

from __future__ import annotations

import pytest

from deepseek.errors import BundleError
from deepseek.serve.folder import find_bundles, name_bundles, versions_of


def bundle(path):
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("format_version: 1\n")
    return path


def test_a_folder_that_is_a_bundle_is_served_under_its_name(tmp_path):
    assert find_bundles(bundle(tmp_path / "small-gpt.v1")) == {"small-gpt.v1": tmp_path / "small-gpt.v1"}


def test_every_subfolder_that_is_a_bundle_is_served(tmp_path):
    for name in ("b", "a"):
        bundle(tmp_path / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("x")
    bundle(tmp_path / ".hidden")
    bundle(tmp_path / "a.tmp-123")
    assert list(find_bundles(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("make", ["missing", "empty", "no bundle"])
def test_a_folder_without_bundles_is_told(tmp_path, make):
    folder = tmp_path / "models"
    if make != "missing":
        folder.mkdir()
    if make == "no bundle":
        (folder / "x").mkdir()
    with pytest.raises(BundleError):
        find_bundles(folder)


@pytest.mark.parametrize("name", ["with space", "модель", "x" * 65, "a+b"])
def test_a_name_that_is_not_fit_for_a_model_is_refused_with_the_fix(tmp_path, name):
    bundle(tmp_path / name)
    with pytest.raises(BundleError, match="rename"):
        find_bundles(tmp_path)


def test_a_link_to_a_bundle_elsewhere_is_refused(tmp_path):
    bundle(tmp_path / "elsewhere")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="leads out"):
        find_bundles(tmp_path / "models")


def test_a_link_inside_a_bundle_that_leads_out_is_refused(tmp_path):
    (tmp_path / "secret").write_text("x")
    bundle(tmp_path / "models" / "m")
    (tmp_path / "models" / "m" / "tokenizer.json").symlink_to(tmp_path / "secret")
    for find in (lambda: find_bundles(tmp_path / "models"), lambda: name_bundles([tmp_path / "models" / "m"])):
        with pytest.raises(BundleError, match="leads out"):
            find()


def test_a_link_that_stays_inside_is_fine(tmp_path):
    bundle(tmp_path / "v1")
    (tmp_path / "latest").symlink_to(tmp_path / "v1")
    assert list(find_bundles(tmp_path)) == ["latest", "v1"]


def test_two_bundles_of_one_name_are_refused(tmp_path):
    paths = [bundle(tmp_path / "a" / "m"), bundle(tmp_path / "b" / "m")]
    with pytest.raises(BundleError, match="two bundles"):
        name_bundles(paths)


def test_a_folder_of_numbered_bundles_is_one_model_with_versions(tmp_path):
    for version in ("2", "10", "1", "x", "03"):
        bundle(tmp_path / "m" / version)
    assert find_bundles(tmp_path) == {"m": tmp_path / "m"}
    assert list(versions_of(tmp_path / "m")) == ["1", "2", "10"]
    assert versions_of(tmp_path / "m" / "2") == {"1": tmp_path / "m" / "2"}
    assert versions_of(tmp_path / "nowhere") == {}


def test_a_link_from_a_version_to_elsewhere_is_refused(tmp_path):
    bundle(tmp_path / "secret")
    bundle(tmp_path / "models" / "m" / "1")
    (tmp_path / "models" / "m" / "2").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="leads out"):
        find_bundles(tmp_path / "models")
