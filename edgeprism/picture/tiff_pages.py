"""A TIFF file → upright 8-bit sRGB: its first page that shows something."""

from __future__ import annotations

from collections.abc import Iterator

from edgeprism.picture import tiff_tags as tags
from edgeprism.picture.frames import Frame, first_shown
from edgeprism.picture.limits import Decoded, check_size, checked
from edgeprism.picture.render import Rendered, image_to_srgb_pixels
from edgeprism.picture.tiff import page_to_image
from edgeprism.picture.tiff_tags import MOST_PAGES, Page, TiffError, open_tiff, page_profile, pages


def tiff_to_rgb(data: bytes, name: str) -> Decoded:
    """Decode a TIFF file. Raises what `bytes_to_rgb` turns into errors that name the picture."""
    found = list(pages(open_tiff(data)))
    more = len(found) > MOST_PAGES
    shown_pages = _not_secondary(found[:MOST_PAGES])
    shown = first_shown(_frames(shown_pages, name), len(shown_pages), more)
    return checked(Decoded(shown.rendered.rgb, shown.rendered.rgb.size, shown.notes), name)


def _frames(found: list[Page], name: str) -> Iterator[Frame]:
    for index, page in enumerate(found):
        yield Frame(index, lambda page=page: _render(page, name))  # type: ignore[misc]


def _render(page: Page, name: str) -> Rendered:
    check_size((page.integer(tags.WIDTH), page.integer(tags.LENGTH)), name)
    image, alpha = page_to_image(page)
    return image_to_srgb_pixels(image, page_profile(page), alpha=alpha)


def _not_secondary(found: list[Page]) -> list[Page]:
    """Leave out previews and masks of other pages, unless there is nothing else."""
    return [page for page in found if not _is_secondary(page)] or found


def _is_secondary(page: Page) -> bool:
    try:
        return page.is_secondary
    except TiffError:
        return False
