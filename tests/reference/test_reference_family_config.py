"""The configs of the hybrid family and its presets: which mixers stand where, what is refused, what the names claim."""

import json
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch
from cuts import generator
from family import BASE, MAKES, config_of
from statecheck_reference.checkpointing import weights_digest
from statecheck_reference.export import load_shipped
from statecheck_reference.hybrid import HybridLanguageModel
from statecheck_reference.hybrid_config import LATER, HybridConfig
from statecheck_reference.models import MODELS
from statecheck_reference.optimiser import make_optimiser
from statecheck_reference.presets import BASELINE, MATRIX, NO_ATTENTION, PRESETS, preset
from statecheck_reference.settings import TrainingSettings
from statecheck_reference.start_checks import check_untrained
from torch import Tensor
from torch.nn import functional

HYBRID = MODELS["hybrid"]
#: What a model was before it could be anything else; the sizes of what it has not are left out.
BEFORE = {
    "layout": "parallel",
    "ratio": "1:1",
    "fusion": "channel-gate",
    "blend": 0.5,
    "blend_learned": True,
    "branch_norm": False,
    "residual_gamma": 0.0,
    "norm_groups": 0,
    "attention_at": -1,
    "mamba_version": 2,
}
#: What the first checkpoints said of the model that ships.
FIRST = {
    "vocabulary": 4096,
    "width": 192,
    "blocks": 2,
    "rwkv_heads": 3,
    "low_rank": 16,
    "mamba_inner": 384,
    "mamba_heads": 6,
    "mamba_groups": 1,
    "mamba_state": 32,
    "feed_forward": 576,
}


class TestPlaces:
    @pytest.mark.parametrize(
        ("layout", "ratio", "expected"),
        [
            ("interleaved", "3:1", "rrrmrrrm"),
            ("interleaved", "1:3", "rmmmrmmm"),
            ("interleaved", "1:0", "rrr"),
            ("interleaved", "0:1", "mmm"),
            ("interleaved", "6:2", "rrrrrrmm"),
            ("interleaved", "2:1", "rrmrr"),
            ("interleaved", "1:1", "rmrm"),
            ("sequential", "3:1", "rrrrrrmm"),
            ("sequential", "1:3", "rrmmmmmm"),
            ("sequential", "1:0", "rrr"),
            ("sequential", "0:1", "mmm"),
            ("sequential", "6:2", "rrrrrrmm"),
            ("sequential", "2:1", "rrrmm"),  # 2/3 of 5 blocks are 3 1/3
            ("sequential", "1:2", "rrmmm"),
        ],
    )
    def test_each_block_has_the_mixer_that_the_ratio_says(self, layout: str, ratio: str, expected: str) -> None:
        config = replace(BASE, layout=layout, ratio=ratio, blocks=len(expected), attention_at=1)
        model = HybridLanguageModel(config)
        for n, (block, letter) in enumerate(zip(model.blocks, expected, strict=True)):
            mixer = {"r": "rwkv", "m": "mamba"}[letter]
            assert config.mixers[n] == (mixer,)
            assert {name for name, _ in block.named_children()} & {"rwkv", "mamba", "attention"} == {
                mixer,
                *["attention"] * (n == 1),
            }
        kinds = [name for name, letter in (("rwkv", "r"), ("mamba", "m")) if letter in expected]
        assert config.components == (*kinds, "attention") == tuple(HYBRID.declared(config.to_dict()).components)

    def test_every_parallel_block_has_both(self) -> None:
        assert replace(BASE, blocks=3).mixers == (("rwkv", "mamba"),) * 3
        assert BASE.components == ("rwkv", "mamba")

    def test_a_rwkv_block_starts_as_its_place_in_the_whole_stack_says(self) -> None:
        """The decays of the last of four blocks, an RWKV-6 after three Mambas: -6 + 5 (i / 7)^2."""
        config = replace(BASE, layout="interleaved", ratio="1:3", blocks=5)
        decay = HybridLanguageModel(config).blocks[4].rwkv.decay
        torch.testing.assert_close(decay, -6 + 5 * (torch.arange(8) / 7) ** 2)

    def test_what_is_added_starts_the_smaller_the_deeper_the_stack(self) -> None:
        """Matrices that leave a mixer by (2 blocks)^-1/2, where no learned scale does it."""
        scales = {}
        for gamma in (0.0, 0.125):
            torch.manual_seed(0)
            blocks = HybridLanguageModel(
                replace(BASE, width=128, mamba_inner=128, attention_at=0, blocks=8, residual_gamma=gamma)
            ).blocks
            ends = (blocks[0].rwkv.output, blocks[0].mamba.out_proj, blocks[0].attention.output, blocks[0].feed_out)
            scales[gamma] = [float(end.weight.detach().std()) * end.in_features**0.5 for end in ends]
            scaled = [{name: set(own.tolist()) for name, own in block.gamma.items()} for block in blocks[:2]]
            one = {"mixing": {gamma}, "feeding": {gamma}} if gamma else {}
            assert scaled == [{**one, "attention": {gamma}} if gamma else {}, one]
        assert scales[0.0] == pytest.approx([0.25] * 4, rel=0.05)
        assert scales[0.125] == pytest.approx([1.0] * 4, rel=0.05)


class TestRefused:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"layout": "stacked"}, "layout: expected one of parallel, interleaved, sequential, found 'stacked'"),
            ({"fusion": "mean"}, "fusion: expected one of gate, channel-gate, sum, residual, project, found 'mean'"),
            ({"fusion": ["gate"]}, r"fusion: expected one of .*, found \['gate'\]"),
            ({"mamba_version": 3}, "mamba_version: expected one of 1, 2, found 3"),
            ({"mamba_version": 0}, "mamba_version: expected a whole number of at least 1, found 0"),
            ({"mamba_version": True}, "mamba_version: expected a whole number of at least 1, found True"),
            ({"mamba_rank": 0}, "mamba_rank: expected a whole number of at least 1, found 0"),
            ({"attention_at": -2}, "attention_at: expected a whole number of at least -1, found -2"),
            ({"attention_at": 2}, "attention_at: expected a block from 0 to 1, or -1 for none, found 2"),
            ({"attention_window": 1}, "attention_window: expected a whole number of at least 2, found 1"),
            ({"norm_groups": -1}, "norm_groups: expected a whole number of at least 0, found -1"),
            ({"feed_forward": -1}, "feed_forward: expected a whole number of at least 0, found -1"),
            ({"feed_forward": 0.5}, "feed_forward: expected a whole number of at least 0, found 0.5"),
            ({"branch_norm": 1}, "branch_norm: expected true or false, found 1"),
            ({"blend_learned": "no", "fusion": "sum"}, "blend_learned: expected true or false, found 'no'"),
            ({"blend_learned": False}, "blend_learned: only the fusion sum can be fixed, found 'channel-gate'"),
            ({"blend": 0}, "blend: expected a share between 0 and 1, found 0"),
            ({"blend": 1.0}, "blend: expected a share between 0 and 1, found 1.0"),
            ({"blend": True}, "blend: expected a share between 0 and 1, found True"),
            ({"blend": "0.5"}, "blend: expected a share between 0 and 1, found '0.5'"),
            ({"blend": float("nan")}, "blend: expected a share between 0 and 1, found nan"),
            ({"residual_gamma": -0.1}, "residual_gamma: expected a number from 0 to 1,000,000, found -0.1"),
            ({"residual_gamma": float("inf")}, "residual_gamma: expected a number from 0 to 1,000,000, found inf"),
            ({"residual_gamma": float("nan")}, "residual_gamma: expected a number from 0 to 1,000,000, found nan"),
            ({"residual_gamma": True}, "residual_gamma: expected a number from 0 to 1,000,000, found True"),
            ({"ratio": "3:1"}, "ratio: every block of the layout parallel has both, found '3:1'; .* interleaved or"),
            ({"norm_groups": 5}, "width: expected a multiple of norm_groups = 5, found 8"),
            ({"norm_groups": 8}, "mamba_inner: expected a multiple of norm_groups = 8, found 12"),
            ({"rwkv_heads": 8}, "rwkv_heads: expected groups of several channels, found 8 of one"),
            ({"norm_groups": 8, "mamba_inner": 16}, "norm_groups: expected groups of several channels, found 8 of one"),
            ({"attention_at": 0, "attention_heads": 3}, "width: expected a multiple of attention_heads = 3, found 8"),
            ({"mamba_groups": 5}, "mamba_inner: expected a multiple of mamba_groups = 5, found 12"),
        ],
    )
    def test_a_value_that_makes_no_model_is_refused(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=rf"HybridConfig\.{message}"):
            replace(BASE, **wrong)

    @pytest.mark.parametrize("ratio", ["3", "3:1:1", "a:b", "", ":", "0:0", "-1:2", "1.5:1", "3: 1", 3, None])
    def test_a_ratio_that_is_none_is_refused(self, ratio: Any) -> None:
        for layout in ("interleaved", "sequential", "parallel"):
            with pytest.raises(ValueError, match=r"HybridConfig\.ratio: expected RWKV:MAMBA, say 3:1 .*, found "):
                replace(BASE, layout=layout, ratio=ratio)

    @pytest.mark.parametrize(
        ("layout", "ratio", "missing"),
        [("interleaved", "3:1", "mamba"), ("sequential", "5:1", "mamba"), ("sequential", "1:7", "rwkv")],
    )
    def test_too_few_blocks_for_the_ratio_are_refused(self, layout: str, ratio: str, missing: str) -> None:
        with pytest.raises(
            ValueError, match=f"with 2 blocks {layout} {ratio} has no {missing}; ask for more blocks or another ratio"
        ):
            replace(BASE, layout=layout, ratio=ratio)

    def test_sizes_of_what_is_not_there_are_free(self) -> None:
        replace(BASE, attention_at=-1, attention_heads=3)
        replace(BASE, mamba_version=1, mamba_heads=5)


class TestMappings:
    @pytest.mark.parametrize("make", MAKES)
    def test_a_config_goes_through_json_and_back(self, make: str) -> None:
        config = config_of(make)
        assert HybridConfig.from_mapping(json.loads(json.dumps(config.to_dict()))) == config

    def test_a_config_of_the_first_checkpoints_makes_the_model_that_the_whole_one_makes(self) -> None:
        assert FIRST.keys() == {field.name for field in fields(HybridConfig)} - set(LATER)
        assert {name: getattr(HybridConfig(), name) for name in BEFORE} == BEFORE
        assert HybridConfig.from_mapping(FIRST) == HybridConfig(**FIRST)
        first = {name: value for name, value in BASE.to_dict().items() if name not in LATER}
        models = []
        for config in (first, HybridConfig.from_mapping(first).to_dict()):
            torch.manual_seed(0)
            models.append(HYBRID.build(config))
        inputs = torch.randint(0, 23, (2, 5), generator=generator(0))
        assert torch.equal(models[0](inputs), models[1](inputs))
        assert models[0].get_states().keys() == models[1].get_states().keys()

    @pytest.mark.parametrize("name", LATER)
    def test_each_later_key_may_be_missing(self, name: str) -> None:
        whole = HybridConfig().to_dict()
        assert HybridConfig.from_mapping({key: value for key, value in whole.items() if key != name}) == HybridConfig()

    @pytest.mark.parametrize("name", FIRST)
    def test_none_of_the_first_keys_may(self, name: str) -> None:
        whole = HybridConfig().to_dict()
        with pytest.raises(ValueError, match=f"hybrid config: expected the keys .*; missing: {name}; unknown: none"):
            HybridConfig.from_mapping({key: value for key, value in whole.items() if key != name})
        with pytest.raises(ValueError, match="missing: none; unknown: heads"):
            HybridConfig.from_mapping({**whole, "heads": 4})

    def test_what_ships_still_loads(self) -> None:
        record = json.loads((HYBRID.folder / "training.json").read_text())
        model = load_shipped(HYBRID.folder)
        assert weights_digest(model.state_dict()) == record["weights_digest"]
        assert sum(parameter.numel() for parameter in model.parameters()) == record["parameters"]
        assert model(torch.tensor([[1, 2, 3]])).isfinite().all()


def parameters_by_hand(c: HybridConfig) -> int:
    """The matrices and vectors of the glossaries, added up: with Mamba-2, channel gates, no branch norms."""
    w, low, inner = c.width, c.low_rank, c.mamba_inner
    convolved = inner + 2 * c.mamba_groups * c.mamba_state
    rwkv = 5 * w * w + 6 * w + 2 * 5 * low * w + w + 2 * 2 * low * w + w + 2 * w  # W, mu, A and B, decay, bonus, norm
    mamba = w * (inner + convolved + c.mamba_heads) + 5 * convolved + 3 * c.mamba_heads + inner + inner * w
    found = c.vocabulary * w + w
    for n, mixers in enumerate(c.mixers):
        added = 1 + (c.feed_forward > 0) + (n == c.attention_at)  # things that are added to the stream
        found += added * w * (2 if c.residual_gamma else 1)  # a norm before each, and a scale
        found += 2 * w * c.feed_forward + (n == c.attention_at) * 4 * w * w
        found += {"rwkv": rwkv, "mamba": mamba, "both": rwkv + mamba + w * w + w}["both" if mixers[1:] else mixers[0]]
    return found


def complete(name: str) -> HybridConfig:
    return HybridConfig.from_mapping(HYBRID.complete(preset(name)))


@cache
def parameters_of(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in HybridLanguageModel(complete(name)).parameters())


def recurrent_state_of(name: str) -> int:
    """Numbers in the matrices of all blocks, for one row."""
    shapes = complete(name).state_shapes
    return sum(torch.Size(shape).numel() for state, shape in shapes.items() if state.endswith(("wkv", "ssm")))


def changed(shape: Any, other: Any) -> dict[str, Any]:
    """The fields of the whole config in which they differ, as the first has them."""
    one, two = HYBRID.complete(shape), HYBRID.complete(other)
    return {name: value for name, value in one.items() if value != two[name]}


class TestPresets:
    @pytest.mark.parametrize("name", PRESETS)
    def test_the_parameters_are_those_of_the_formulas(self, name: str) -> None:
        assert parameters_of(name) == parameters_by_hand(complete(name))

    def test_the_sizes_are_those_that_are_named(self) -> None:
        assert (parameters_of("hybrid-8m"), parameters_of("hybrid-3m")) == (8_032_016, 3_035_595)
        assert recurrent_state_of("hybrid-8m") == 6 * 2 * 16_384
        assert parameters_of("wide") == pytest.approx(parameters_of("baseline"), rel=0.1)
        for pure in ("pure-rwkv", "pure-mamba"):
            assert parameters_of(pure) == pytest.approx(parameters_of("no-attention"), rel=0.01)
            assert recurrent_state_of(pure) == recurrent_state_of("no-attention") == 98_304
        assert recurrent_state_of("state-32") == 2 * recurrent_state_of("baseline")

    @pytest.mark.parametrize(
        ("name", "wkv", "shift", "ssm", "conv"),
        [
            ("hybrid-8m", (4, 64, 64), (256,), (8, 64, 32), (512 + 64, 3)),
            ("hybrid-3m", (5, 32, 32), (160,), (5, 64, 16), (320 + 32, 3)),
        ],
    )
    def test_the_states_of_every_block_have_the_shapes_that_are_named(
        self, name: str, wkv: tuple, shift: tuple, ssm: tuple, conv: tuple
    ) -> None:
        own = {"rwkv.wkv": wkv, "rwkv.shift": shift, "mamba.ssm": ssm, "mamba.conv": conv}
        blocks = {"hybrid-8m": 6, "hybrid-3m": 5}[name]
        assert complete(name).state_shapes == {
            f"blocks.{n}.{state}": own[state] for n in range(blocks) for state in own
        }

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("no-attention", {"attention_at": -1}),
            ("shallow", {"blocks": 6, "attention_at": 3}),
            ("gamma-1", {"residual_gamma": 1.0}),
            ("groups-1", {"norm_groups": 1}),
            ("state-32", {"rwkv_heads": 8, "mamba_state": 32}),
            (
                "wide",
                {
                    "width": 320,
                    "blocks": 8,
                    "attention_at": 4,
                    "attention_heads": 5,
                    "rwkv_heads": 20,
                    "mamba_inner": 320,
                    "mamba_heads": 10,
                    "feed_forward": 320,
                },
            ),
        ],
    )
    def test_a_member_of_the_matrix_differs_from_the_baseline_in_what_it_names(
        self, name: str, expected: dict[str, Any]
    ) -> None:
        assert changed(MATRIX[name], BASELINE) == expected

    def test_a_pure_model_differs_from_the_hybrid_without_attention_in_its_mixers_alone(self) -> None:
        sizes = {
            "pure-rwkv": {"rwkv_heads", "feed_forward"},
            "pure-mamba": {"mamba_inner", "mamba_heads", "feed_forward"},
        }
        for name, own in sizes.items():
            assert changed(MATRIX[name], NO_ATTENTION).keys() == {"layout", "ratio"} | own
            assert complete(name).mixers == ((name.removeprefix("pure-"),),) * 12

    @pytest.mark.parametrize("name", MATRIX)
    def test_the_members_of_the_matrix_have_channels_of_the_same_make(self, name: str) -> None:
        """A channel has as many numbers of state in either branch; heads of Mamba and of attention have one size."""
        config, size = complete(name), 32 if name in ("state-32", "pure-rwkv") else 16
        shapes = {state.rpartition(".")[2]: shape for state, shape in config.state_shapes.items()}
        width = config.width
        if "wkv" in shapes:
            assert shapes["wkv"] == (width // size, size, size)
            assert shapes["shift"] == (width,)
        if "ssm" in shapes:
            assert shapes["ssm"] == (config.mamba_inner // 32, 32, config.mamba_state)
            assert shapes["conv"] == (config.mamba_inner + 2 * config.mamba_state, 3)
        assert ("keys" in shapes) == (config.attention_at >= 0)
        if "keys" in shapes:
            assert shapes["keys"] == shapes["values"] == (255, width // 64, 64)
            assert shapes["filled"] == (255,)
            assert config.attention_at == config.blocks // 2

    @pytest.mark.parametrize("name", PRESETS)
    def test_an_untrained_preset_is_undecided_and_a_step_lowers_its_loss(self, name: str) -> None:
        torch.manual_seed(0)
        shape = preset(name)
        model, tokens = HYBRID.build(HYBRID.complete(shape)), torch.randint(0, 4096, (2, 13), generator=generator(1))
        checks = check_untrained(model, tokens)
        assert checks["G1"]["passed"]
        assert 0.95 <= checks["G2"]["entropy_share"] <= 1
        optimiser = make_optimiser(model, TrainingSettings("hybrid", shape, peak_rate=1e-3))
        before = loss_on(model, tokens)
        assert {name: state.shape[1:] for name, state in model.get_states().items()} == complete(name).state_shapes
        before.backward()
        optimiser.step()
        model.set_states(None)
        with torch.no_grad():
            assert float(loss_on(model, tokens)) < float(before.detach()) - 0.01

    def test_an_unknown_name_is_told_the_known_ones(self) -> None:
        with pytest.raises(
            ValueError, match=r"preset: expected one of hybrid-8m, hybrid-3m, baseline, .*, found 'big'"
        ):
            preset("big")


def loss_on(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    return functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
