"""Fetch and rasterise the pictures: ``python -m edgeprism.models.nano.recipe.world.assets FOLDER``.

Fetches the pinned npm packages of ``things.STYLES`` and of ``FONTS`` with ``npm pack``, refuses a
package whose licence differs from the one noted here, draws every icon once (this needs
``resvg-py``) and writes ``sprites.npy``, the fonts and ``ATTRIBUTIONS.md`` to the folder. Of the
rest of the recipe, only ``photographs`` uses the network. Nothing in this folder is committed.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeprism.models.nano.recipe.world.things import STYLES, THINGS, IconSet

SPRITE = 96  # pixels, each side
FONT_VERSION = "5.2.5"
# package → the file of its Latin letters; all under the SIL Open Font License
FONTS = {
    "open-sans": "open-sans-latin-600-normal",
    "lato": "lato-latin-700-normal",
    "montserrat": "montserrat-latin-700-normal",
    "merriweather": "merriweather-latin-700-normal",
    "pt-serif": "pt-serif-latin-700-normal",
    "oswald": "oswald-latin-600-normal",
    "comic-neue": "comic-neue-latin-700-normal",
    "nunito": "nunito-latin-800-normal",
    "source-code-pro": "source-code-pro-latin-700-normal",
}
FONT_LICENCE = "OFL-1.1"


def fetch_package(package: str, version: str) -> dict[str, bytes]:
    """Return the files of one npm package, by their path in it."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", f"{package}@{version}"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        files = {}
        with tarfile.open(archive) as packed:
            for member in packed.getmembers():
                data = packed.extractfile(member)
                if data is not None:
                    files[member.name.removeprefix("package/")] = data.read()
    return files


def check_licence(actual: str, noted: str, package: str) -> None:
    """Exit if a package's licence differs from the one that the recipe notes."""
    if actual != noted:
        raise SystemExit(f"{package}: licence {actual!r}, but the recipe notes {noted!r}")


def icon_to_svg(icons: dict[str, Any], icon: str) -> str:
    """Return one icon of an Iconify set as a whole SVG; follow an alias to its icon."""
    aliases = icons.get("aliases", {})
    while icon in aliases:
        icon = aliases[icon]["parent"]
    entry = icons["icons"][icon]
    width = entry.get("width", icons.get("width", 16))
    height = entry.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{SPRITE}" height="{SPRITE}">{entry["body"]}</svg>'
    )


def svg_to_sprite(svg: str) -> NDArray[np.uint8]:
    """Return RGBA [SPRITE, SPRITE, 4], cropped to the drawing and centred, to equalise sizes."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SPRITE, height=2 * SPRITE))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    if box is None:
        raise ValueError("an icon without a visible pixel")
    image = image.crop(box)
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((SPRITE, SPRITE), Image.Resampling.LANCZOS))


def style_to_sprites(style: IconSet) -> NDArray[np.uint8]:
    """Return one style's sprites [things, SPRITE, SPRITE, 4], in the order of ``THINGS``."""
    files = fetch_package(style.package, style.version)
    licence = json.loads(files["info.json"])["license"]["spdx"]
    check_licence(licence, style.licence, style.package)
    icons = json.loads(files["icons.json"])
    return np.stack([svg_to_sprite(icon_to_svg(icons, icon)) for icon in THINGS.values()])


def fetch_fonts(folder: Path) -> None:
    """Fetch one .woff file per font; FreeType reads the format."""
    folder.mkdir(exist_ok=True)
    for name, file in FONTS.items():
        files = fetch_package(f"@fontsource/{name}", FONT_VERSION)
        check_licence(json.loads(files["package.json"])["license"], FONT_LICENCE, name)
        (folder / f"{name}.woff").write_bytes(files[f"files/{file}.woff"])


def attributions() -> str:
    """Return the attributions of the icons and fonts in the training pictures."""
    lines = ["# Attributions", "", "Icons (drawn smaller, turned and recombined by the renderer):"]
    lines += [
        f"- {s.title}, {s.licence}, {s.source} (npm {s.package} {s.version})"
        for s in STYLES.values()
    ]
    lines += ["", f"Fonts, all {FONT_LICENCE}, from npm @fontsource/NAME {FONT_VERSION}:"]
    lines += [f"- {name}" for name in FONTS]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Fetch from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="folder for the assets, outside the repository")
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "sprites.npy", np.stack([style_to_sprites(s) for s in STYLES.values()]))
    fetch_fonts(folder / "fonts")
    (folder / "ATTRIBUTIONS.md").write_text(attributions(), encoding="utf-8")
    print(f"{len(STYLES)} styles x {len(THINGS)} things, {len(FONTS)} fonts in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
