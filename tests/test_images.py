"""Image files of every kind: shown as a viewer would, or refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

from eva_utils.utils import data as D
from eva_utils.utils.images import ImageFiles, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return read_image(path)


def test_colour_grey_and_palette(tmp_path):
    colour = Image.fromarray(PIXELS)
    assert np.array_equal(saved(tmp_path / "a.png", colour), PIXELS)
    grey = saved(tmp_path / "b.png", Image.fromarray(PIXELS[..., 0]))
    assert np.array_equal(grey, PIXELS[..., :1].repeat(3, axis=2))
    palette = colour.quantize(16)
    assert np.array_equal(saved(tmp_path / "c.png", palette), np.asarray(palette.convert("RGB")))
    black_and_white = Image.fromarray(PIXELS[..., 0] > 127)
    assert set(saved(tmp_path / "d.png", black_and_white).flatten().tolist()) == {0, 255}


def test_transparent_parts_are_white(tmp_path):
    alpha = np.zeros((9, 12, 1), np.uint8)
    alpha[:, 6:] = 255
    shown = saved(tmp_path / "a.png", Image.fromarray(np.concatenate([PIXELS, alpha], axis=2)))
    assert (shown[:, :6] == 255).all() and np.array_equal(shown[:, 6:], PIXELS[:, 6:])


@pytest.mark.parametrize(("mode", "kind"), [("LA", "png"), ("PA", "tiff"), ("P", "png"), ("L", "png")])
def test_transparency_of_grey_and_palette_images_is_white_too(mode, kind, tmp_path):
    """One half of the image is 40, the other 200 and transparent, in a channel or as the level that is."""
    levels = np.full((9, 12), 40, np.uint8)
    levels[:, 6:] = 200
    image, options = Image.fromarray(levels), {}
    if mode.endswith("A"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(255 * (levels < 100).astype(np.uint8)))
        assert image.mode == mode
    else:
        image, options = image.convert(mode), {"transparency": 200}
    shown = saved(tmp_path / f"a.{kind}", image, **options)
    assert (shown[:, :6] == 40).all() and (shown[:, 6:] == 255).all()


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    levels = (np.arange(108, dtype=np.uint16) * 600).reshape(9, 12)
    shown = saved(tmp_path / "a.png", Image.fromarray(levels))
    assert np.array_equal(shown[..., 0], (levels / 257).round().astype(np.uint8))


def test_cmyk_is_converted(tmp_path):
    cmyk = Image.fromarray(np.full((9, 12, 3), (200, 30, 60), np.uint8)).convert("CMYK")
    assert np.abs(saved(tmp_path / "a.jpg", cmyk, quality=95).astype(int) - (200, 30, 60)).max() <= 6


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees
    shown = saved(tmp_path / "a.png", Image.fromarray(PIXELS), exif=exif)
    assert np.array_equal(shown, np.rot90(PIXELS, -1))


def test_size_resizes(tmp_path):
    assert saved(tmp_path / "a.png", Image.fromarray(PIXELS)).shape == (9, 12, 3)
    flat = Image.fromarray(np.full((64, 40, 3), (10, 20, 30), np.uint8))
    flat.save(tmp_path / "b.png")
    assert (read_image(tmp_path / "b.png", 16) == (10, 20, 30)).all()
    assert read_image(tmp_path / "b.png", 16).shape == (16, 16, 3)
    expected = resize(torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()), [16, 16], antialias=True)
    found = read_image(tmp_path / "a.png", 16).transpose(2, 0, 1)
    assert np.abs(found.astype(int) - expected.numpy()).max() <= 1  # as images in memory are resized


def giant_png(width, height):
    """A PNG that claims a size and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 10) + b"IDAT" + bytes(14)


def as_bytes(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8))
REFUSED = {
    "empty.png": (b"", r"empty\.png cannot be read as an image; restore or remove it"),
    "text.png": (b"not an image", r"text\.png cannot be read as an image"),
    "half.jpg": (as_bytes(NOISE, "JPEG")[:600], r"half\.jpg cannot be read as an image"),
    "half.png": (as_bytes(NOISE, "PNG")[:1500], r"half\.png cannot be read as an image"),
    "giant.png": (giant_png(60_000, 60_000), r"giant\.png claims (60000x60000|more) pixels"),
    "large.png": (giant_png(12_000, 10_000), r"large\.png claims 12000x10000 pixels"),
    "odd.png": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\x04IHDR\x00\x00\x00\x01????", r"odd\.png cannot be read as an image"),
    "odd.ppm": (b"P6 2\x18 2 255\n" + bytes(12), r"odd\.ppm cannot be read as an image"),
    "dot.png": (
        as_bytes(NOISE.resize((1, 1)), "PNG"),
        r"dot\.png is 1x1 pixels and the models take 8x8 or more; give size=",
    ),
    "flat.png": (as_bytes(NOISE.resize((32, 7)), "PNG"), r"flat\.png is 32x7 pixels and the models take 8x8 or more"),
    "moving.webp": (
        as_bytes(NOISE, "WEBP", save_all=True, append_images=[NOISE.rotate(90)]),
        r"moving\.webp is animated \(2 frames\); save the frame you mean",
    ),
    "real.tiff": (
        as_bytes(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
        r"real\.tiff has 'F' pixels of 32 bits",
    ),
}


def test_a_jpeg_with_its_preview_is_read_as_the_photograph(tmp_path):
    NOISE.save(tmp_path / "photo.jpg", "MPO", quality=95, save_all=True, append_images=[NOISE.resize((8, 8))])
    NOISE.save(tmp_path / "alone.jpg", quality=95)
    with Image.open(tmp_path / "photo.jpg") as photo:
        assert photo.n_frames == 2
    assert np.array_equal(read_image(tmp_path / "photo.jpg"), read_image(tmp_path / "alone.jpg"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_shown_is_refused_by_name(name, tmp_path):
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / name)


def test_a_file_that_is_gone_or_locked_is_not_called_damaged(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png")

    def refuse(path):
        raise PermissionError(f"permission denied: {path}")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(PermissionError, match=r"permission denied: .*locked\.png"):
        read_image(tmp_path / "locked.png")


def test_chosen_files_keep_their_order_and_their_size(tmp_path):
    for level in range(3):
        Image.new("RGB", (10, 8), (level,) * 3).save(tmp_path / f"{level}.png")
    chosen = ImageFiles(sorted(tmp_path.iterdir()), 16).pick(torch.tensor([2, 0]))
    assert [chosen[n].unique().tolist() for n in range(len(chosen))] == [[2], [0]]
    assert chosen[0].shape == (3, 16, 16)


def test_every_file_is_of_the_first_ones_size(tmp_path):
    for number, size in enumerate([(10, 8), (10, 8), (8, 10)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    files = ImageFiles(sorted(tmp_path.iterdir()))
    assert files[1].shape == (3, 8, 10)
    with pytest.raises(ValueError, match=r"2\.png is 8x10 pixels and .*0\.png is 10x8; give size= to resize all"):
        files[2]


NAMES = ["two words", "été 猫", 'it\'s "quoted"', "a..b", "100%", "semi;colon"]


def test_odd_names_hidden_and_stray_files(tmp_path):
    for part in ("train", "test"):
        for name in NAMES:
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            Image.fromarray(PIXELS).save(folder / f"{name} 1.PNG")
            (folder / ".hidden.png").write_bytes(b"")
            (folder / "notes.txt").write_text("stray")
        (tmp_path / part / ".cache").mkdir()
        (tmp_path / part / "Thumbs.db").write_bytes(b"")
    data = D.load_data(tmp_path)
    assert data.classes == sorted(NAMES) and len(data.train.labels) == len(NAMES)
    assert torch.equal(data.test.images[0], torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()))


def test_links_that_lead_out_are_refused_and_others_followed(image_folder, tmp_path):
    outside = tmp_path / "outside.png"
    Image.new("RGB", (10, 10)).save(outside)
    link = image_folder / "train" / "cat" / "link.png"
    try:
        link.symlink_to(image_folder / "train" / "dog" / "00.png")
    except OSError:
        pytest.skip("needs symbolic links")
    assert len(D.load_data(image_folder).train.labels) == 11
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(ValueError, match=r"link\.png is a link that leads out of the dataset"):
        D.load_data(image_folder)
    link.unlink()
    for part in ("train", "test"):
        (image_folder / part / "owl").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ValueError, match=r"owl is a link that leads out of the dataset"):
        D.load_data(image_folder)
    (image_folder / "test").rename(tmp_path / "elsewhere")
    (image_folder / "test").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(ValueError, match=r"test is a link that leads out of the dataset; put the folder itself there"):
        D.load_data(image_folder)


def test_test_images_of_another_size_than_the_training_images_are_refused(tmp_path):
    for part, shape in (("train", (10, 12)), ("test", (20, 12))):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(np.full((*shape, 3), 100 + number, np.uint8)).save(folder / f"{number}.png")
    with pytest.raises(ValueError, match=r"training images are 12x10 pixels and the test images 12x20; give size= to"):
        D.load_data(tmp_path)
    assert next(iter(D.load_data(tmp_path, size=8).test))[0].shape == (4, 3, 8, 8)
