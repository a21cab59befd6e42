"""States, the tensors of a network by name, held against what a network expects; none of these changes its arguments.

Counters of batches (``num_batches_tracked``) are no weights. Frozen normalisation has none and older files lack them,
so that one rule holds wherever a state is loaded: ``match_counters``.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..utils.errors import InputError

COUNTER = "num_batches_tracked"


def is_counter(name: str) -> bool:
    """Whether a tensor is the counter of batches of a normalisation."""
    return name.endswith(COUNTER)


def match_counters(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with the counters of batches that are expected: zeros for those it lacks, none of a frozen layer.

    Args:
        state: tensors by name.
        expected: of the network; only names matter. A counter in ``state`` for which it has a ``running_mean`` and no
            counter is left out.

    Returns:
        A new dict of the same tensors.
    """
    frozen = {
        name
        for name in state
        if is_counter(name) and name not in expected and f"{name.removesuffix(COUNTER)}running_mean" in expected
    }
    counters = {name: torch.tensor(0) for name in expected if is_counter(name)}
    return counters | {name: tensor for name, tensor in state.items() if name not in frozen}


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes of a state with those expected; that it lacks counters of batches does not matter.

    Args:
        state, expected: tensors by name.
        source: what the state is of, for the message.

    Raises:
        InputError: they differ; one line with counts and the first case.
    """
    missing = sorted(name for name in set(expected) - set(state) if not is_counter(name))
    unexpected = sorted(set(state) - set(expected))
    if missing or unexpected:
        differences = [
            f"{len(names)} {kind} (first: {names[0]})"
            for kind, names in (("missing", missing), ("unexpected", unexpected))
            if names
        ]
        raise InputError(f"{source}: tensors: {', '.join(differences)}; use weights of this network")
    for name, tensor in expected.items():
        if name in state and state[name].shape != tensor.shape:
            raise InputError(
                f"{source}: {name}: expected shape {tuple(tensor.shape)}, got {tuple(state[name].shape)}; "
                "the rank or ratios are of another network"
            )


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load tensors by name, all or none, converting their type to the network's; see ``match_counters``.

    Raises:
        InputError: names are missing or left over, or a shape differs; the first of each is named.
    """
    expected = model.state_dict()
    complete = match_counters(state, expected)
    check_state(complete, expected, source)
    model.load_state_dict(complete)


def check_finite(tensors: Mapping[str, Tensor], whose: str) -> None:
    """Refuse NaN and infinity in tensors.

    Raises:
        InputError: there is one; the message names the tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{whose}: {name}: expected finite weights, got NaN or infinity; use an intact checkpoint")
