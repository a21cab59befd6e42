"""The presets by name: ranks and ratios of the paper's rows for ResNet-50, and what saves as much of other ResNets.

Standard library only.
"""

from .architecture import ARCHITECTURES, architecture

# norton-64, -77, -78: the release's strings. The paper does not publish the ratios of norton-43 and -50;
# these were found by search: they give the published 2.32 G / 14.51 M and 2.08 G / 13.51 M.
PRESETS: dict[str, tuple[int | None, str]] = {
    "dense": (None, "[0.]*20"),
    "norton-43": (1, "[0.]+[0.07]*3+[0.04]*16"),
    "norton-50": (1, "[0.]+[0.07]*3+[0.16]*13+[0.11]*3"),
    "norton-64": (1, "[0.]+[0.28]*19"),
    "norton-77": (1, "[0.]+[0.45]*19"),
    "norton-78": (1, "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"),
}
# The same presets of other ResNets, by MACs saved at 224 x 224: rank and uniform ratios that meet them within 0.5 %.
PRESETS_BY_TARGET: dict[str, dict[str, tuple[int, str]]] = {
    "resnet18": {
        "norton-43": (4, "[0.06]*11"),
        "norton-50": (4, "[0.13]*11"),
        "norton-64": (3, "[0.17]*11"),
        "norton-77": (2, "[0.23]*11"),
        "norton-78": (2, "[0.25]*11"),
    },
    "resnet34": {
        "norton-43": (5, "[0.086]*19"),
        "norton-50": (4, "[0.04]*19"),
        "norton-64": (3, "[0.08]*19"),
        "norton-77": (2, "[0.13]*19"),
        "norton-78": (2, "[0.15]*19"),
    },
    "resnet101": {
        "norton-43": (1, "[0.]+[0.008]*36"),
        "norton-50": (1, "[0.]+[0.078]*36"),
        "norton-64": (1, "[0.]+[0.23]*36"),
        "norton-77": (1, "[0.]+[0.403]*36"),
        "norton-78": (1, "[0.]+[0.417]*36"),
    },
    "resnet152": {
        "norton-43": (1, "[0.]*54"),
        "norton-50": (1, "[0.]+[0.06]*53"),
        "norton-64": (1, "[0.]+[0.211]*53"),
        "norton-77": (1, "[0.]+[0.38]*53"),
        "norton-78": (1, "[0.]+[0.4]*53"),
    },
}


def presets(arch: str) -> dict[str, tuple[int | None, str]]:
    """Rank and ratios of every preset that there is for an architecture, by name.

    Raises:
        InputError: no such architecture.
    """
    if architecture(arch).name == "resnet50":
        return dict(PRESETS)
    return {"dense": (None, f"[0.]*{len(ARCHITECTURES[arch].pruned)}"), **PRESETS_BY_TARGET.get(arch, {})}
