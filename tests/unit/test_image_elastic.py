"""Elastic deformation: the field against scipy's definition, the warp against scipy's and against plain formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from deepseek.data.image.elastic import (
    RandomElasticDeformation,
    elastic_deform,
    elastic_deform_mask,
    random_field,
    warp_boxes,
)
from deepseek.data.image.fields import field_bands
from deepseek.data.pipeline import Pipeline
from deepseek.errors import ConfigError, DataError

BORDERS = {"reflection": "reflect", "border": "nearest", "zeros": "constant"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def smooth_image(*space: int) -> torch.Tensor:
    noise = ndimage.gaussian_filter(rng(7).standard_normal((3, *space)), (0, *([3.0] * len(space))))
    return torch.from_numpy((noise - noise.min()) / (noise.max() - noise.min()) * 255).float()


def autocorrelation(fields: np.ndarray, distance: int) -> float:
    """Of fields (n, height, width) along their last axis."""
    return float((fields[..., distance:] * fields[..., :-distance]).mean() / (fields**2).mean())


class TestField:
    @pytest.mark.parametrize("sigma", [1.0, 2.7, 4.0, 9.5])
    def test_has_the_spread_and_smoothness_of_scipys_definition(self, sigma: float) -> None:
        generator, margin = rng(1), 40
        noise = generator.uniform(-1, 1, (40, 128 + 2 * margin, 128 + 2 * margin))
        wanted = ndimage.gaussian_filter(noise, (0, sigma, sigma))[:, margin:-margin, margin:-margin] * 20
        found = torch.cat([random_field((128, 128), 20, sigma, generator) for _ in range(20)]).numpy()
        independent = 40 * 128**2 / (4 * math.pi * sigma**2)
        tolerance = 5 / math.sqrt(independent)  # five standard errors of a variance, over two fields
        assert found.std() == pytest.approx(wanted.std(), rel=tolerance)
        assert found.std() == pytest.approx(20 / (2 * math.sqrt(3 * math.pi) * sigma), rel=tolerance)
        assert abs(found.mean()) < 5 * wanted.std() / math.sqrt(independent)
        for distance in (1, round(sigma) + 1, round(2 * sigma) + 1, round(4 * sigma) + 1):
            assert autocorrelation(found, distance) == pytest.approx(autocorrelation(wanted, distance), abs=tolerance)

    @pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0, 1.9, 2.0, 3.99, 4.0, 17.3])
    def test_every_pixel_has_the_variance_of_the_definition(self, sigma: float) -> None:
        """Exactly, from the weights: a unit impulse at each coarse point, all of them together."""
        from deepseek.data.image.fields import _kernel

        spacing = max(1, math.floor(sigma))
        variance = (_kernel(sigma, spacing).double() ** 2).sum(dim=1)
        impulse = np.zeros(401)
        impulse[200] = 1
        wanted = (ndimage.gaussian_filter1d(impulse, sigma, mode="constant") ** 2).sum() if sigma else 1.0
        assert variance.numpy() == pytest.approx(wanted, rel=5e-4)

    def test_volumes_have_three_axes_and_the_spread_of_three_blurs(self) -> None:
        fields = torch.stack([random_field((24, 40, 50), 10, 2.0, rng(seed)) for seed in range(10)])
        assert fields.shape == (10, 3, 24, 40, 50)
        assert float(fields.std()) == pytest.approx(10 / math.sqrt(3) / (2 * math.sqrt(math.pi) * 2) ** 1.5, rel=0.05)

    def test_without_blur_it_is_uniform_noise(self) -> None:
        field = random_field((200, 200), 3, 0.0, rng())
        assert float(field.abs().max()) <= 3
        assert float(field.std()) == pytest.approx(math.sqrt(3), rel=0.02)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(1, 150), min_size=2, max_size=2), st.floats(0, 12), st.integers(0, 99))
    def test_bands_are_the_field(self, shape: list[int], sigma: float, seed: int) -> None:
        field = random_field(shape, 5, sigma, rng(seed))
        assert field.shape == (2, *shape)
        assert bool(field.isfinite().all())
        assert torch.equal(torch.cat(list(field_bands(shape, 5, sigma, rng(seed))), dim=1), field)

    @pytest.mark.parametrize(("shape", "alpha", "sigma"), [((4,), 1, 1), ((0, 4), 1, 1), ((4, 4), -1, 1)])
    def test_refuses_what_is_no_field(self, shape: tuple[int, ...], alpha: float, sigma: float) -> None:
        with pytest.raises(ConfigError):
            random_field(shape, alpha, sigma, rng())
        with pytest.raises(ConfigError, match="sigma"):
            random_field((4, 4), 1, math.nan, rng())


class TestWarp:
    @pytest.mark.parametrize("border", BORDERS)
    @pytest.mark.parametrize("space", [(40, 57), (9, 14, 17)])
    def test_agrees_with_scipy(self, border: str, space: tuple[int, ...]) -> None:
        image, field = smooth_image(*space), random_field(space, 60, 2.0, rng(3))
        places = np.indices(space) + field.double().numpy()
        # scipy's "constant" blends nothing past the edge, and grid_sample does: compare within
        inside = np.all([(p >= 0) & (p <= s - 1) for p, s in zip(places, space, strict=True)], axis=0)
        for channel, found in zip(image, elastic_deform(image, field, border), strict=True):
            wanted = ndimage.map_coordinates(channel.double().numpy(), places, order=1, mode=BORDERS[border])
            compare = inside if border == "zeros" else np.ones(space, dtype=bool)
            assert np.abs(found.numpy() - wanted)[compare].max() < 0.02

    def test_masks_take_the_nearest_class(self) -> None:
        mask, field = torch.randint(0, 5, (50, 61)), random_field((50, 61), 60, 3.0, rng(3))
        places = np.clip(np.rint(np.indices((50, 61)) + field.numpy()).astype(int), 0, None)
        wanted = mask.numpy()[np.minimum(places[0], 49), np.minimum(places[1], 60)]
        found = elastic_deform_mask(mask, field, "border")
        assert found.dtype == torch.int64
        assert float((found.numpy() != wanted).mean()) < 1e-3  # ties of rounding alone

    def test_large_classes_stay_exact(self) -> None:
        mask = torch.full((8, 9), 2**40 + 1)
        assert torch.equal(elastic_deform_mask(mask, random_field((8, 9), 20, 2.0, rng())), mask)

    @settings(max_examples=20, deadline=None)
    @given(st.lists(st.integers(1, 30), min_size=2, max_size=3))
    def test_a_still_field_changes_nothing(self, space: list[int]) -> None:
        image = torch.from_numpy(rng().integers(0, 256, (2, *space), dtype=np.uint8))
        field = torch.zeros(len(space), *space)
        assert torch.equal(elastic_deform(image, field, dims=len(space)), image)
        assert torch.equal(elastic_deform_mask(image[0].long(), field), image[0].long())

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 40), st.integers(1, 20), st.floats(0, 200), st.sampled_from(sorted(BORDERS)))
    def test_bands_make_no_difference(self, height: int, rows: int, alpha: float, border: str) -> None:
        from deepseek.data.image.warp import deform_pair

        image, field = smooth_image(height, 33), random_field((height, 33), alpha, 1.0, rng(height))
        found, mask = deform_pair(image, image[0].long(), field.split(rows, dim=1), border)
        assert torch.allclose(found, elastic_deform(image, field, border), atol=0.01)
        assert mask is not None
        assert float((mask != elastic_deform_mask(image[0].long(), field, border)).float().mean()) < 0.01

    def test_batches_share_a_field_or_have_their_own(self) -> None:
        images, fields = (
            smooth_image(20, 30).repeat(4, 1, 1, 1),
            torch.stack([random_field((20, 30), 30, 2, rng(i)) for i in range(4)]),
        )
        shared, own = elastic_deform(images, fields[1]), elastic_deform(images, fields)
        for place in range(4):
            assert torch.allclose(shared[place], elastic_deform(images[place], fields[1]), atol=1e-3)
            assert torch.allclose(own[place], elastic_deform(images[place], fields[place]), atol=1e-3)

    def test_the_image_has_a_gradient(self) -> None:
        image = smooth_image(6, 7).double().requires_grad_()
        field = random_field((6, 7), 10, 1.0, rng())
        assert torch.autograd.gradcheck(lambda pixels: elastic_deform(pixels, field), image)

    def test_says_when_flat_and_volume_both_fit(self) -> None:
        images, field = torch.rand(3, 2, 8, 9), torch.zeros(3, 2, 8, 9)
        with pytest.raises(DataError, match="dims=2 or dims=3"):
            elastic_deform(images, field)
        assert torch.allclose(elastic_deform(images, field, dims=2), images, atol=1e-5)

    @pytest.mark.parametrize("field", [torch.zeros(2, 8, 8), torch.zeros(2, 8, 9).int(), torch.zeros(3, 8, 9)])
    def test_refuses_a_field_of_another_shape(self, field: torch.Tensor) -> None:
        with pytest.raises(DataError, match="doesn't fit"):
            elastic_deform(torch.zeros(1, 8, 9), field)

    def test_refuses_fields_that_are_no_numbers(self) -> None:
        with pytest.raises(DataError, match="no numbers"):
            elastic_deform(torch.zeros(1, 8, 9), torch.full((2, 8, 9), math.nan))
        with pytest.raises(ConfigError, match="border"):
            elastic_deform(torch.zeros(1, 8, 9), torch.zeros(2, 8, 9), "wrap")  # type: ignore[arg-type]


class TestStage:
    def test_mask_and_image_stay_together(self) -> None:
        """An image that shows its own mask still does: where it shows one class alone, the mask has that class."""
        mask = (smooth_image(120, 150)[0] > 128).long()
        sample = {"image": (mask * 255).to(torch.uint8).expand(3, -1, -1), "mask": mask}
        bent = RandomElasticDeformation((80.0, 80.0), 6.0).apply(sample, rng(5))
        assert bent["image"].dtype == torch.uint8
        assert float((bent["mask"] != mask).float().mean()) > 0.02
        shown = bent["image"][0]
        assert float(((shown == 0) | (shown == 255)).float().mean()) > 0.5
        assert bool((bent["mask"][shown == 0] == 0).all())
        assert bool((bent["mask"][shown == 255] == 1).all())
        assert float(((shown > 127.5).long() != bent["mask"]).float().mean()) < 0.02

    @settings(max_examples=20, deadline=None)
    @given(st.integers(5, 60), st.integers(5, 60), st.integers(6, 70), st.integers(6, 70), st.integers(0, 50))
    def test_boxes_are_the_hull_of_their_warped_pixels(
        self, x: int, y: int, width: int, height: int, seed: int
    ) -> None:
        field = random_field((140, 150), 60, 8.0, rng(seed))
        mask = torch.zeros(140, 150, dtype=torch.int64)
        mask[y : y + height, x : x + width] = 1
        rows, columns = (elastic_deform_mask(mask, field) == 1).nonzero().T
        painted = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        found = warp_boxes(torch.tensor([[x, y, x + width, y + height]]).float(), field)[0]
        assert float((found - painted).abs().max()) < 1.5

    def test_boxes_out_of_sight_are_dropped_with_their_class(self) -> None:
        sample = {
            "image": torch.zeros(3, 64, 64, dtype=torch.uint8),
            "boxes": torch.tensor([[5.0, 5, 25, 30], [70, 70, 90, 90]]),
            "box_labels": torch.tensor([1, 2]),
        }
        bent = RandomElasticDeformation().apply(sample, rng())
        assert bent["boxes"].shape == (1, 4)
        assert bent["box_labels"].tolist() == [1]
        plain = RandomElasticDeformation().apply({"image": sample["image"]}, rng())
        assert torch.equal(plain["image"], bent["image"])

    def test_volumes(self) -> None:
        sample = {"image": smooth_image(10, 20, 22), "mask": torch.randint(0, 3, (10, 20, 22))}
        before = sample["image"].clone()
        bent = RandomElasticDeformation((30.0, 30.0), 2.0).apply(sample, rng())
        assert bent["image"].shape == (3, 10, 20, 22)
        assert bent["mask"].shape == (10, 20, 22)
        assert not torch.equal(bent["image"], before)
        assert torch.equal(sample["image"], before)
        with pytest.raises(DataError, match="flat"):
            RandomElasticDeformation().apply({**sample, "boxes": torch.zeros(0, 4)}, rng())

    def test_in_a_pipeline_and_in_yaml(self) -> None:
        pipeline = Pipeline([RandomElasticDeformation(sigma=6.0, p=0.5)], seed=3)
        again = Pipeline.from_config(pipeline.to_config(), seed=3)
        sample = {"image": smooth_image(30, 31).to(torch.uint8), "index": 4}
        assert again.written == pipeline.written
        assert torch.equal(again(sample)["image"], pipeline(sample)["image"])
        assert pipeline.without_augmentation().steps == ()

    @pytest.mark.parametrize(
        "wrong",
        [{"alpha": (30, 10)}, {"alpha": (-1, 3)}, {"sigma": -1.0}, {"sigma": math.nan}, {"p": 2.0}, {"border": "x"}],
    )
    def test_refuses_wrong_settings(self, wrong: dict) -> None:
        with pytest.raises(ConfigError):
            RandomElasticDeformation(**wrong)
