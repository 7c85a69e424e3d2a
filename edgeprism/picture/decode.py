"""The bytes of a picture's file → upright 8-bit sRGB."""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec

from PIL import Image, UnidentifiedImageError

from edgeprism.errors import ImageError
from edgeprism.picture import signatures
from edgeprism.picture.embedded import embedded_profile
from edgeprism.picture.frames import Frame, Shown, first_shown
from edgeprism.picture.kinds import NEEDS_PLUGIN, heic_cure
from edgeprism.picture.limits import Decoded, UnreadLayout, check_size, checked, too_many_pixels
from edgeprism.picture.png import PngFacts, png_facts
from edgeprism.picture.render import Rendered, image_to_srgb_pixels, orientation_of
from edgeprism.picture.source import not_a_picture, video_error

# The formats that EdgePrism reads. Pillow's other readers run programs (PostScript), follow files
# into other formats, or are seldom tested with damaged bytes.
# TIFF files are read by modules of this package.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM")
_OPTIONAL_FORMATS = ("WEBP", "AVIF")  # not in every build of Pillow
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def bytes_to_rgb(data: bytes, name: str, enough: int | None) -> Decoded:
    """Decode a file.

    Args:
        data: The file.
        name: What errors call it.
        enough: As for `read_picture`.

    Raises:
        ImageError: It is damaged, over the limits, of a kind that is not read, or needs too
            much memory.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty.", "Copy it again from where it came.")
    if data[:4] in signatures.TIFF:
        # imported here, as below, so that the first caption of a photograph does not wait for it
        from edgeprism.picture.tiff_pages import tiff_to_rgb

        return guarded(lambda: tiff_to_rgb(data, name), name)
    if signatures.is_video(data[: signatures.HEAD_BYTES]):
        raise video_error(name)
    formats = _formats()
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[8:64]:
        formats = _with_heif(name)
    return guarded(lambda: _decode(data, name, enough, formats), name)


def image_to_rgb(image: Image.Image, name: str) -> Decoded:
    """Convert a PIL image, which is left as it is. Raises ImageError as `bytes_to_rgb`."""

    def convert() -> Decoded:
        check_size(image.size, name)
        # the caller may have chosen a frame; Pillow takes long to count the pages of a TIFF file
        n_frames = 1 if image.format in ("MPO", "TIFF") else getattr(image, "n_frames", 1)
        notes = []
        if n_frames > 1:
            index = image.tell()
            notes = [f"frame {index + 1} of {n_frames}" if index else f"first of {n_frames} frames"]
        rendered = image_to_srgb_pixels(image, image.info.get("icc_profile"))
        rgb = rendered.rgb.copy() if rendered.rgb is image else rendered.rgb
        return checked(Decoded(rgb, rgb.size, (*notes, *rendered.notes)), name)

    return guarded(convert, name)


def guarded(decode: Callable[[], Decoded], name: str) -> Decoded:
    """Call `decode`; turn what it raises into an ImageError that names the picture."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large or damaged pictures; the limits and errors here suffice
            warnings.simplefilter("ignore")
            return decode()
    except ImageError:
        raise
    except MemoryError as error:  # the file may be sound
        raise ImageError(
            f"{name}: reading it needs more memory than there is.", "Export a smaller copy."
        ) from error
    except UnreadLayout as error:
        raise ImageError(
            f"{name}: TIFF with {error} is not read.", "Export it with 8 or 16 bits a channel."
        ) from error
    except UnidentifiedImageError as error:
        raise not_a_picture(name) from error
    except Image.DecompressionBombError as error:
        raise too_many_pixels(name) from error
    except Exception as error:  # decoders raise anything on damaged bytes (struct.error, …)
        reason = str(error) or f"its decoder gave up ({type(error).__name__})"
        raise ImageError(
            f"{name}: damaged picture: {reason}.", "Copy it again from where it came."
        ) from error


def _decode(data: bytes, name: str, enough: int | None, formats: tuple[str, ...]) -> Decoded:
    facts = png_facts(data) if data.startswith(signatures.PNG) else None
    if facts is not None:
        if facts.fault:
            raise ValueError(facts.fault)
        data = facts.data
    with _opened(data, name, formats) as image:
        check_size(image.size, name)
        profile = facts.profile if facts else image.info.get("icc_profile")
        if profile is None and facts is None:
            damaged = "icc_profile" in image.info  # a JPEG that lacks a part of its profile
            profile = b"damaged" if damaged else embedded_profile(image.format, data)
        if image.format == "JPEG":
            return _jpeg(image, data, name, enough, profile)

        def render() -> Rendered:
            rendered = _rendered(image, profile, facts, name)
            if rendered.rgb is image and _count(image) > 1:  # the next frame will replace it
                return Rendered(image.copy(), rendered.notes)
            return rendered

        shown = first_shown(_frames(image, render, name), _count(image))
        return checked(_as_decoded(shown), name)


def _rendered(
    image: Image.Image, profile: bytes | None, facts: PngFacts | None, name: str
) -> Rendered:
    if facts is not None:
        alpha = None
        if facts.key is not None:
            from edgeprism.picture.png_alpha import apply_key

            alpha = apply_key(image, facts)
        return image_to_srgb_pixels(
            image, profile, deep=facts.bits == 16, alpha=alpha, is_narrow=facts.is_narrow
        )
    if image.format == "PPM" and image.mode == "F":
        from edgeprism.picture.pfm import floats_to_image

        grey, note = floats_to_image(image, name)
        return Rendered(grey.convert("RGB"), (note,) if note else ())
    return image_to_srgb_pixels(image, profile, deep=image.format == "PPM")


def _opened(data: bytes, name: str, formats: tuple[str, ...]) -> Image.Image:
    """Open a file. Raises ImageError for sound files of kinds that are not read."""
    if data[:3] in (b"PF\n", b"PF\r", b"PF ", b"PF\t"):
        raise ImageError(f"{name}: PFM in colour is not read.", "Export it as PNG or TIFF.")
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except OSError as error:
        unread = re.fullmatch(r"Unsupported BMP (.+)", str(error))
        if unread is None:
            raise
        reason = unread[1].lower().replace("bitfields layout", "layout of bit masks")
        raise ImageError(
            f"{name}: BMP with this {reason} is not read.", "Export it as PNG."
        ) from error


def _jpeg(
    image: Image.Image, data: bytes, name: str, enough: int | None, profile: bytes | None
) -> Decoded:
    """Decode a JPEG, at a reduced scale where that is enough; of an MPO the first picture."""
    (width, height), notes = image.size, []
    try:
        _load_scaled(image, enough)
    except OSError:
        repaired = _repaired_jpeg(data, enough)
        if repaired is None:
            raise
        image, note = repaired
        notes.append(note)
    if image.size != (width, height):
        notes.insert(0, f"read at {image.width} × {image.height} pixels")
    rendered = image_to_srgb_pixels(image, profile)
    size = (height, width) if orientation_of(image) > 4 else (width, height)
    return checked(Decoded(rendered.rgb, size, (*notes, *rendered.notes)), name)


def _repaired_jpeg(data: bytes, enough: int | None) -> tuple[Image.Image, str] | None:
    """Decode a JPEG that was cut; None if it does not show its whole picture."""
    from edgeprism.picture import jpeg

    progressive = jpeg.complete_scans(data)
    try:
        if progressive is not None:
            return _decoded_jpeg(progressive[0], enough), progressive[1]
        image, other = (_decoded_jpeg(file, enough) for file in jpeg.ends_to_try(data))
    except OSError:
        return None
    complete = image.tobytes() == other.tobytes()
    return (image, "cut short: only the mark at its end is missing") if complete else None


def _decoded_jpeg(data: bytes, enough: int | None) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    _load_scaled(image, enough)
    return image


def _load_scaled(image: Image.Image, enough: int | None) -> None:
    width, height = image.size
    if enough is not None and max(width, height) > enough:
        share = enough / max(width, height)
        image.draft(None, (max(1, int(width * share)), max(1, int(height * share))))
    image.load()


def _count(image: Image.Image) -> int:
    """Return the number of a file's pictures, as far as it is known without decoding them."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _frames(image: Image.Image, render: Callable[[], Rendered], name: str) -> Iterator[Frame]:
    """Yield the pictures of a file as far as they can be read, the main one of a HEIF first."""
    if image.format == "HEIF":
        yield Frame(image.tell(), render, is_main=True)
        return
    if _count(image) > 1:
        image.seek(0)  # counting the frames may have moved to another one
    yield Frame(0, render)
    for index in range(1, _count(image)):
        try:
            image.seek(index)
        except (EOFError, SyntaxError):
            return
        check_size(image.size, name)  # a GIF grows where a frame is larger than its screen
        yield Frame(index, render)


def _as_decoded(shown: Shown) -> Decoded:
    return Decoded(shown.rendered.rgb, shown.rendered.rgb.size, shown.notes)


def _with_heif(name: str) -> tuple[str, ...]:
    """Return the known formats and HEIF, for which Pillow needs a plug-in; phones write it."""
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(f"{name}: {NEEDS_PLUGIN}.", heic_cure()) from error
    pillow_heif.register_heif_opener(thumbnails=False)
    return (*_formats(), "HEIF")


@functools.cache
def _formats() -> tuple[str, ...]:
    optional = (name for name in _OPTIONAL_FORMATS if find_spec(f"PIL._{name.lower()}"))
    return (*_FORMATS, *optional)
