"""CompressionSpec: parsing that cannot run or hang, round trips, widths by hand, presets, error texts."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from norton_det.models.architecture import ARCHITECTURES
from norton_det.models.notation import format_list, parse_list
from norton_det.models.presets import PRESETS
from norton_det.models.spec import CompressionSpec
from norton_det.utils.errors import InputError

RATIOS = st.floats(min_value=0, max_value=0.98, allow_nan=False)


def runs(values, length):
    """Lists of a length with runs of equal values, as people write them."""
    parts = st.lists(st.tuples(values, st.integers(1, length)), min_size=1, max_size=5)
    return parts.map(
        lambda drawn: [value for value, count in drawn for _ in range(count)] + [drawn[0][0]] * length
    ).map(lambda numbers: numbers[:length])


@st.composite
def specs(draw):
    arch = ARCHITECTURES[draw(st.sampled_from(list(ARCHITECTURES)))]
    ranks = runs(st.integers(0, 9), len(arch.factored)).map(tuple)  # 0: dense
    rank = draw(st.none() | st.integers(1, 9) | ranks)
    ratios = draw(runs(RATIOS, len(arch.pruned)))
    return CompressionSpec(tuple(ratios), rank, arch.name, draw(st.text(max_size=12)))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_lists_come_back_unchanged(numbers):
    assert parse_list(format_list(numbers)) == numbers


@given(specs())
@settings(max_examples=50)
def test_specs_come_back_unchanged(spec):
    assert CompressionSpec.from_json(spec.to_json()) == spec
    rank = format_list(spec.rank) if isinstance(spec.rank, tuple) else str(spec.rank)
    assert CompressionSpec.parse(rank, format_list(spec.ratios), spec.arch, spec.name) == spec
    assert hash(spec) == hash(CompressionSpec.from_dict(spec.to_dict()))


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text):
    try:
        assert all(isinstance(number, float) for number in parse_list(text))
    except InputError as error:
        assert "\n" not in str(error)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), st.lists, max_leaves=8)
)
def test_any_json_value_in_any_field_is_parsed_or_refused(value):
    for field in ("version", "arch", "rank", "ratios", "name"):
        try:
            CompressionSpec.from_dict(CompressionSpec.preset("norton-78").to_dict() | {field: value})
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("[0.]+[0.1]*2+[0.4]*3", [0.0, 0.1, 0.1, 0.4, 0.4, 0.4]),
        (" [ 0, .5 ] * 2 + [1e-3,] ", [0.0, 0.5, 0.0, 0.5, 0.001]),
        ("0,0.1, 0.2", [0.0, 0.1, 0.2]),
        ("0 0.1", [0.0, 0.1]),
        ("[0.]*0+[1]", [1.0]),
    ],
)
def test_what_the_release_and_people_write(text, numbers):
    assert parse_list(text) == numbers


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "[0.]*", "[0.]+", "[0.]-[1]", "[x]", "[0.]*2.5", "__import__('os')", "[0.]**2"]
)
def test_other_text_is_refused(text):
    with pytest.raises(InputError, match="ratios: expected"):
        parse_list(text)


@pytest.mark.parametrize(
    "text", ["11," * 5000 + "x", "[" + "11," * 5000 + "x]", "[0.]+" * 5000 + "x", "1" * 20000 + "x"]
)
def test_refusal_takes_no_time(text):
    """A number that can be matched in two ways makes a regular expression try 2^n of them."""
    start = time.perf_counter()
    with pytest.raises(InputError):
        parse_list(text)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("text", ["[0.]*1000000000000", "[0.]*999999999", "[0.]*" + "9" * 5000])
def test_endless_lists_are_refused(text):
    with pytest.raises(InputError, match="expected"):
        parse_list(text)


def test_widths_of_norton_78_by_hand():
    widths = CompressionSpec.preset("norton-78").widths()
    assert widths.stem == 64
    # 256 * 0.9 = 230.4, 512 * 0.9 = 460.8, 1024 * 0.6 = 614.4; stage 4 is never pruned
    assert widths.stages == (230, 460, 614, 2048)
    # ratios[4:8] are 0.4, the others 0.75: 64 * 0.6 = 38.4, 128 * 0.6 = 76.8
    assert widths.blocks == ((38, 38, 38), (76, 32, 32, 32), (64,) * 6, (128,) * 3)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_named_and_valid(name):
    spec = CompressionSpec.preset(name)
    assert spec.name == name and len(spec.ratios) == 20 and name in str(spec)
    assert spec.is_dense == (name == "dense")
    assert spec.ranks == (None if name == "dense" else 1,) * 16


@pytest.mark.parametrize(
    ("arch", "blocks", "expansion"),
    [("resnet18", 8, 1), ("resnet34", 16, 1), ("resnet50", 16, 4), ("resnet101", 33, 4), ("resnet152", 50, 4)],
)
def test_dense_has_the_published_widths(arch, blocks, expansion):
    spec = CompressionSpec.dense(arch)
    widths = spec.widths()
    # with basic blocks the stem and stage 1 are one stream, and a block has two 3x3 convolutions
    basic = expansion == 1
    assert (spec.num_blocks, len(spec.ratios)) == (blocks, blocks + (3 if basic else 4))
    assert len(spec.ranks) == blocks * (2 if basic else 1)
    assert (widths.stem, widths.stages) == (64, tuple(expansion * width for width in (64, 128, 256, 512)))
    assert [set(stage) for stage in widths.blocks] == [{64}, {128}, {256}, {512}]
    assert tuple(map(len, widths.blocks)) == ARCHITECTURES[arch].depths


def test_same_network_compares_widths_and_ranks_not_names_or_digits():
    spec = CompressionSpec.parse(1, "[0.]+[0.28]*19")
    assert spec.same_network(CompressionSpec.preset("norton-64"))
    assert spec.same_network(CompressionSpec.parse([1] * 16, "[0.]+[0.2801]*19"))  # widths round down to the same
    assert not spec.same_network(CompressionSpec.parse(2, "[0.]+[0.28]*19"))
    assert not spec.same_network(CompressionSpec.parse(1, "[0.]+[0.3]*19"))


def test_ranks_per_block():
    spec = CompressionSpec.parse("[1]*8+[2]*8", "[0.]*20")
    assert spec.ranks == (1,) * 8 + (2,) * 8
    assert CompressionSpec.parse("3", "[0.]*20").rank == 3
    assert CompressionSpec.parse("[3]*16", "[0.]*20").rank == 3  # equal ranks are one
    assert CompressionSpec.parse("none", "[0.]*20").rank is None
    mixed = CompressionSpec.parse("[1]*8+[0]*8", "[0.]*20")  # 0 in a list: dense
    assert mixed.ranks == (1,) * 8 + (None,) * 8 and not mixed.is_dense
    assert CompressionSpec.from_json(mixed.to_json()) == mixed
    assert CompressionSpec.parse("[0]*16", "[0.]*20").is_dense


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CompressionSpec.parse(1, "[0.]*100"), r"ratios: expected 20 .*got 100; use ratios\[:20\]"),
        (lambda: CompressionSpec.parse(1, "[0.]*4"), "got 4; give 20"),
        (lambda: CompressionSpec.parse(1, "[0.]+[1.0]*19"), r"ratios\[1\]: expected 0 <= ratio < 1, got 1"),
        (lambda: CompressionSpec.parse(1, "[-0.1]*20"), r"ratios\[0\]"),
        (lambda: CompressionSpec.parse(1, "[0.999]*20"), "leaves none of 64 channels; use at most 0.9844"),
        (lambda: CompressionSpec.parse(10, "[0.]*20"), "rank: expected 1 to 9"),
        (lambda: CompressionSpec.parse(0, "[0.]*20"), "rank: expected 1 to 9"),
        (lambda: CompressionSpec.parse(-1, "[0.]*20"), "rank: expected 1 to 9"),
        (lambda: CompressionSpec.parse("1.5", "[0.]*20"), "rank: expected a whole number, got 1.5"),
        (lambda: CompressionSpec.parse("1e999", "[0.]*20"), "rank: expected a whole number, got inf"),
        (lambda: CompressionSpec.parse(float("nan"), "[0.]*20"), "rank: expected a whole number, got nan"),
        (lambda: CompressionSpec.parse([1, 2], "[0.]*20"), "rank: expected one number or 16 .*got 2"),
        (lambda: CompressionSpec.parse(1, "[0.]*20", arch="vgg"), "arch: expected one of resnet18, .*got 'vgg'"),
        (lambda: CompressionSpec.preset("norton-99"), "preset: expected one of dense, norton-43.*got 'norton-99'"),
        (lambda: CompressionSpec.dense("vgg"), "arch: expected one of"),
        (lambda: CompressionSpec("[0.]*20"), "use CompressionSpec.parse for text"),
        (lambda: CompressionSpec(0.5), "ratios: expected numbers, got 0.5"),
        (lambda: CompressionSpec((10**400,) * 20), "ratios: expected numbers, got 1000"),
        (lambda: CompressionSpec.from_json("{"), "spec: expected JSON"),
        (lambda: CompressionSpec.from_json("[" * 100_000), "spec: expected JSON"),
        (lambda: CompressionSpec.from_json('{"rank": ' + "9" * 5000 + "}"), "spec: expected JSON"),
        (lambda: CompressionSpec.from_json("[1]"), "spec: expected a JSON object"),
        (
            lambda: CompressionSpec.from_dict({"ratios": [0.0] * 20, "ranks": 1}),
            "unknown field 'ranks'; the fields are arch",
        ),
        (lambda: CompressionSpec.from_dict({"ratios": [0.0] * 20, "version": 2}), "version: expected 1, got 2"),
        (lambda: CompressionSpec.from_dict({"rank": 1}), "ratios: expected a list, got None"),
        (lambda: CompressionSpec.from_dict({"ratios": [0.0] * 20, "arch": []}), r"arch: expected one of .*got \[\]"),
    ],
)
def test_bad_input_is_refused_with_field_value_and_mend(build, message):
    with pytest.raises(InputError, match=message) as caught:
        build()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300 and ";" in text


def test_json_is_plain():
    fields = json.loads(CompressionSpec.preset("norton-78").to_json())
    assert set(fields) == {"version", "arch", "rank", "ratios", "name"}
    assert fields["rank"] == 1 and len(fields["ratios"]) == 20
