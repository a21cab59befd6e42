"""The procedure of the NORTON release, faults included, re-implemented to compare with. Not for use.

Its faults, all kept: the angle of two factor spaces is taken modulo pi/2, so that orthogonal ones count as equal; the
vector that holds the *order* of removal is sorted as if it held scores, which makes the kept set as good as random; and
in a residual stage every block chooses its output channels for itself, so that the channels which are added do not
belong together. (Its input selection of the shortcut, also wrong, is done right here.)
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from norton_det.compression.criteria import elimination_order, keep_indices
from norton_det.compression.prune import NORM_FIELDS
from norton_det.decomposition.angles import subspace_angles
from norton_det.decomposition.cp import Factors
from norton_det.models.layers import factors_to_state
from norton_det.models.spec import CompressionSpec


def release_keep(factors: Factors, count: int) -> Tensor:
    """Filters that the release keeps of a CP layer."""
    modes = (factors.a, factors.b, factors.c)
    distance = torch.stack([subspace_angles(mode).remainder(torch.pi / 2) for mode in modes]).sum(0)
    order = elimination_order(distance)  # entry k: the filter removed at step k
    return order.argsort()[-count:].sort().values


def release_state(
    state: Mapping[str, Tensor], factors: Mapping[str, Factors], spec: CompressionSpec
) -> dict[str, Tensor]:
    """The state dict that the release's pruning gives, with norton_det's names."""
    widths = spec.widths()
    out: dict[str, Tensor] = {}

    def norms(name: str) -> Tensor:
        return state[f"{name}.weight"].double().flatten(1).norm(dim=1)

    def norm(name: str, index: Tensor) -> None:
        out.update({f"{name}.{field}": state[f"{name}.{field}"][index] for field in NORM_FIELDS})
        out[f"{name}.num_batches_tracked"] = torch.tensor(0)

    def conv(name: str, outputs: Tensor, inputs: Tensor) -> None:
        out[f"{name}.weight"] = state[f"{name}.weight"][outputs][:, inputs]

    stream = keep_indices(norms("conv1"), widths.stem)
    conv("conv1", stream, torch.arange(3))
    norm("bn1", stream)
    for stage, block in spec.blocks():
        name, width = f"layer{stage}.{block}", widths.blocks[stage - 1][block]
        inner = keep_indices(norms(f"{name}.conv1"), width)
        part = factors[f"{name}.conv2"].inputs(inner)
        middle = release_keep(part, width)
        outputs = keep_indices(norms(f"{name}.conv3"), widths.stages[stage - 1])
        if block == 0:
            own = keep_indices(norms(f"{name}.downsample.0"), widths.stages[stage - 1])
            conv(f"{name}.downsample.0", own, stream)
            norm(f"{name}.downsample.1", own)
        conv(f"{name}.conv1", inner, stream)
        norm(f"{name}.bn1", inner)
        out.update({f"{name}.conv2.{key}": value for key, value in factors_to_state(part.filters(middle)).items()})
        norm(f"{name}.bn2", middle)
        conv(f"{name}.conv3", outputs, middle)
        norm(f"{name}.bn3", outputs)
        stream = outputs
    out.update({name: state[name] for name in ("fc.weight", "fc.bias")})
    return out
