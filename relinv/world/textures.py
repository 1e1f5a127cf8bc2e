"""Materials and fabrics: small tileable pictures, computed once from fixed seeds."""

from __future__ import annotations

import functools

import numpy as np

SIDE = 128
Texture = np.ndarray  # (SIDE, SIDE, 3) float32 in 0..255


def _plain(color: tuple[int, int, int]) -> Texture:
    return np.broadcast_to(np.asarray(color, np.float32), (SIDE, SIDE, 3)).copy()


def _noise(seed: int, cells: int) -> np.ndarray:
    """Return smooth noise in 0..1 with `cells` lumps a side, (SIDE, SIDE)."""
    from PIL import Image

    grid = np.random.default_rng(seed).random((cells, cells)).astype(np.float32)
    grid = np.pad(grid, ((0, 1), (0, 1)), mode="wrap")
    return np.asarray(Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _blend(base: Texture, color: tuple[int, int, int], mask: np.ndarray) -> Texture:
    weight = np.clip(mask, 0, 1)[..., None]
    return base * (1 - weight) + np.asarray(color, np.float32) * weight


def _axes() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    return x, y


def _veins(seed: int, base: tuple[int, int, int], vein: tuple[int, int, int], width: float) -> Texture:
    ridges = np.abs(_noise(seed, 5) - 0.5) + 0.4 * np.abs(_noise(seed + 1, 11) - 0.5)
    return _blend(_plain(base), vein, 1 - ridges / width)


def _stripes(base: tuple[int, int, int], stripe: tuple[int, int, int], period: int, wide: int) -> Texture:
    _, y = _axes()
    return _blend(_plain(base), stripe, (y % period < wide).astype(np.float32))


def _checks(a: tuple[int, int, int], b: tuple[int, int, int], period: int) -> Texture:
    x, y = _axes()
    across, down = (x // period) % 2, (y // period) % 2
    return _blend(_plain(a), b, 0.5 * across + 0.5 * down)


def _quilt() -> Texture:
    x, y = _axes()
    colors = np.asarray([(236, 96, 88), (250, 206, 84), (92, 168, 220), (122, 196, 120)], np.float32)
    patch = (x // 16 + 2 * (y // 16)).astype(int) % 4
    seam = ((x % 16 < 2) | (y % 16 < 2)).astype(np.float32)
    return _blend(colors[patch], (255, 250, 240), seam)


def _wood() -> Texture:
    x, y = _axes()
    rings = np.sin((y + 14 * _noise(3, 4) + 0.05 * x) * 0.62) * 0.5 + 0.5
    return _blend(_plain((176, 116, 66)), (106, 62, 34), rings * 0.8)


def _foil() -> Texture:
    facets = np.floor(_noise(5, 9) * 6) / 5
    return _blend(_plain((150, 154, 164)), (248, 250, 255), facets)


def _metal() -> Texture:
    x, y = _axes()
    return _blend(_plain((92, 104, 124)), (214, 224, 238), np.sin((x + y) * 0.09) * 0.5 + 0.5)


def _gold() -> Texture:
    x, y = _axes()
    return _blend(_plain((198, 138, 22)), (255, 226, 96), np.sin((x - y) * 0.08) * 0.5 + 0.5)


def _dots() -> Texture:
    x, y = _axes()
    inside = ((x % 20 - 10) ** 2 + (y % 20 - 10) ** 2 < 30).astype(np.float32)
    return _blend(_plain((252, 248, 244)), (232, 84, 150), inside)


def _carpet() -> Texture:
    x, y = _axes()
    diamond = (np.abs(x % 32 - 16) + np.abs(y % 32 - 16) < 9).astype(np.float32)
    return _blend(_plain((140, 24, 44)), (238, 178, 62), diamond)


def _plastic() -> Texture:
    x, y = _axes()
    shine = ((x + y) % 28 < 5).astype(np.float32)
    return _blend(_plain((96, 214, 224)), (236, 255, 255), shine)


def _sheet() -> Texture:
    x, y = _axes()
    return _blend(_plain((206, 186, 236)), (156, 128, 204), 0.5 + 0.5 * np.sin((x + 0.3 * y) * 0.25))


def _chocolate() -> Texture:
    x, y = _axes()
    groove = ((x % 20 < 3) | (y % 20 < 3)).astype(np.float32)
    return _blend(_plain((92, 50, 36)), (54, 26, 18), groove)


@functools.cache
def texture(name: str) -> Texture:
    """Return the texture of a material or fabric, (128, 128, 3) float32 in 0..255. KeyError if it has none."""
    makers = {
        "apple": lambda: _veins(11, (214, 32, 48), (255, 120, 110), 0.12),
        "carrot": lambda: _stripes((246, 134, 36), (216, 98, 18), 16, 3),
        "clay": lambda: _veins(21, (192, 100, 66), (168, 82, 52), 0.30),
        "glass": lambda: _veins(31, (176, 222, 246), (240, 252, 255), 0.22),
        "jade": lambda: _veins(41, (40, 150, 104), (120, 214, 160), 0.16),
        "marble": lambda: _veins(51, (240, 238, 240), (146, 146, 158), 0.09),
        "metal": _metal,
        "wood": _wood,
        "gold": _gold,
        "chocolate": _chocolate,
        "towel": lambda: _stripes((250, 250, 252), (70, 128, 214), 20, 9),
        "blanket": lambda: _checks((186, 36, 50), (44, 26, 50), 12),
        "quilt": _quilt,
        "paper": lambda: _stripes((232, 230, 240), (150, 148, 168), 14, 3),
        "napkin": _dots,
        "tablecloth": lambda: _checks((252, 250, 248), (222, 52, 60), 9),
        "foil": _foil,
        "sheet": _sheet,
        "plastic": _plastic,
        "carpet": _carpet,
    }
    return makers[name]().astype(np.float32)
