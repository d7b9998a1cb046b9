"""The transformer with its cache: its equations by hand, its states, what ships, and what the checks say of it."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from statecheck_reference.checkpointing import weights_digest
from statecheck_reference.export import evaluate_shipped, load_shipped
from statecheck_reference.models import MODELS
from statecheck_reference.registry import TEXT_FOLDER
from statecheck_reference.training_log import read_log
from statecheck_reference.transformer import Layer, TransformerConfig, TransformerLanguageModel, attention_bias, slopes
from torch import Tensor

import statecheck as sc
from statecheck.errors import UsageError
from statecheck.resolve import Request, resolve
from statecheck.testing import plant

SMALL = TransformerConfig(vocabulary=23, width=16, layers=2, heads=4, feed_forward=24)
FOLDER = MODELS["transformer"].folder
ONE_COMPONENT = {"S4", "D3", "coupling", "flow", "gradient-ratio"}
NO_RECURRENT_STATE = {"G3.5", "D2", "health"}


@pytest.fixture
def model() -> TransformerLanguageModel:
    torch.manual_seed(0)
    return TransformerLanguageModel(SMALL)


def ids(batch: int, time: int, seed: int = 1) -> Tensor:
    return torch.randint(0, SMALL.vocabulary, (batch, time), generator=torch.Generator().manual_seed(seed))


class TestEquations:
    def test_two_tokens_by_hand(self) -> None:
        """Width 1: RMSNorm gives the sign, n = 1, -1. No queries, so that the weight of the older token is
        e^-m / (1 + e^-m), m = 2^-8; its answer is 2 n, the feed-forward part is off, and the logits are E sign(x)."""
        model = TransformerLanguageModel(TransformerConfig(vocabulary=2, width=1, layers=1, heads=1, feed_forward=1))
        with torch.no_grad():
            model.embedding.weight.copy_(torch.tensor([[3.0], [-0.5]]))
            layer = model.layers[0]
            assert isinstance(layer, Layer)
            layer.qkv.weight.copy_(torch.tensor([[0.0], [1.0], [2.0]]))
            layer.output.weight.fill_(1.0)
            layer.feed_out.weight.zero_()
        model.double()
        older = math.exp(-(2**-8)) / (1 + math.exp(-(2**-8)))
        stream, _, _ = layer(model.embedding(torch.tensor([[0, 1]])), None, attention_bias(0, 2, slopes(1).double()))
        expected = torch.tensor([3 + 2.0, -0.5 + 2 * older - 2 * (1 - older)], dtype=torch.float64)
        torch.testing.assert_close(stream[0, :, 0], expected, rtol=1e-5, atol=0)  # the norm's 1e-6 beside x^2
        logits = model(torch.tensor([[0, 1]]))
        torch.testing.assert_close(logits[0, 0], torch.tensor([3.0, -0.5], dtype=torch.float64), rtol=1e-5, atol=0)
        assert model.get_states()["layers.0.v"].flatten().tolist() == pytest.approx([2.0, -2.0], rel=1e-5)

    def test_attention_against_loops(self, model: TransformerLanguageModel) -> None:
        """The first layer's keys, values and stream, head by head and token by token, from the glossary."""
        model.double()
        inputs = ids(1, 9)
        layer = model.layers[0]
        assert isinstance(layer, Layer)
        x = model.embedding(inputs)[0].detach()  # (T, W)
        normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        weights = layer.qkv.weight.detach().view(3, 4, 4, 16)  # q/k/v, head, D, W
        heads = []
        for head in range(4):
            q, k, v = (normed @ weights[part, head].T for part in range(3))
            slope = 2.0 ** (-8 * (head + 1) / 4)
            rows = []
            for t in range(9):
                scores = torch.stack([q[t] @ k[s] / 2.0 - slope * (t - s) for s in range(t + 1)])
                share = scores.exp() / scores.exp().sum()
                rows.append(sum(share[s] * v[s] for s in range(t + 1)))
            heads.append(torch.stack(rows))
        stream = x + torch.cat(heads, 1) @ layer.output.weight.T
        normed = stream / (stream.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        stream = stream + (normed @ layer.feed_in.weight.T).clamp_min(0) ** 2 @ layer.feed_out.weight.T
        found, key, _ = layer(x[None], None, attention_bias(0, 9, slopes(4).double()))
        torch.testing.assert_close(found[0], stream, rtol=1e-10, atol=1e-12)
        assert key.shape == (1, 4, 9, 4)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
    def test_token_by_token_in_chunks_and_whole_agree(
        self, model: TransformerLanguageModel, dtype: torch.dtype, tolerance: float
    ) -> None:
        model.to(dtype)
        inputs = ids(3, 300)
        whole = model(inputs)
        after = model.get_states()
        for pieces in (inputs.split(1, dim=1), inputs.split([7, 1, 256, 36], dim=1)):
            model.set_states(None)
            parts = torch.cat([model(piece) for piece in pieces], dim=1)
            assert (parts - whole).norm() <= tolerance * whole.norm()
            for name, state in model.get_states().items():
                assert (state - after[name]).norm() <= tolerance * after[name].norm()


class TestStates:
    def test_the_cache_grows_with_every_token_and_nothing_in_it_changes(self, model: TransformerLanguageModel) -> None:
        assert model.get_states() == {}
        model(ids(2, 5))
        before = model.get_states()
        assert {name: tuple(state.shape) for name, state in before.items()} == {
            f"layers.{layer}.{part}": (2, 4, 5, 4) for layer in (0, 1) for part in "kv"
        }
        model(ids(2, 3))
        assert all(torch.equal(state[:, :, :5], before[name]) for name, state in model.get_states().items())
        assert model(ids(2, 0)).shape == (2, 0, 23)
        assert {state.shape[2] for state in model.get_states().values()} == {8}

    def test_a_state_put_back_continues_where_it_was_taken(self, model: TransformerLanguageModel) -> None:
        first, second = ids(2, 6), ids(2, 4, seed=2)
        model(first)
        states = model.get_states()
        expected = model(second)
        model.set_states(states)
        assert torch.equal(model(second), expected)
        model.set_states(None)
        assert not torch.allclose(model(second), expected)  # the memory matters

    @pytest.mark.parametrize("time", [1, 3])
    def test_gradients_reach_the_states_given(self, model: TransformerLanguageModel, time: int) -> None:
        """Against finite differences in float64."""
        model.double()
        inputs, names = ids(1, time), ["layers.0.k", "layers.1.v"]
        model(ids(1, 3, seed=4))
        states = {name: state.detach() for name, state in model.get_states().items()}

        def loss(*chosen: Tensor) -> Tensor:
            model.set_states({**states, **dict(zip(names, chosen, strict=True))})
            return model(inputs).log_softmax(-1)[..., 0].sum()

        assert torch.autograd.gradcheck(loss, [states[name].clone().requires_grad_() for name in names])

    def test_states_that_do_not_fit_are_refused_with_a_reason(self, model: TransformerLanguageModel) -> None:
        model(ids(2, 5))
        good = model.get_states()
        for wrong, message in (
            ({"layers.0.k": good["layers.0.k"][:, :3]}, r"expected shape \(batch, 4, time, 4\) with one batch and one"),
            ({"layers.1.v": good["layers.1.v"][:, :, 1:]}, r"states\['layers.1.v'\]: .* found \(2, 4, 4, 4\)"),
            ({"layers.1.v": good["layers.1.v"][:1]}, r"states\['layers.1.v'\]: .* found \(1, 4, 5, 4\)"),
            ({name: state[:, :, :0] for name, state in good.items()}, r"found \(2, 4, 0, 4\)"),
            ({"layers.0.v": good["layers.0.v"].double()}, "expected torch.float32"),
        ):
            with pytest.raises(ValueError, match=message):
                model.set_states({**good, **wrong})
        with pytest.raises(ValueError, match=r"missing: layers.1.v; unknown: none"):
            model.set_states({name: state for name, state in good.items() if name != "layers.1.v"})
        with pytest.raises(ValueError, match=r"expected a batch of 2, .* found 3"):
            model(ids(3, 1))

    def test_what_wrapping_finds(self, model: TransformerLanguageModel) -> None:
        facts = sc.wrap(model, training_length=16).facts
        assert {(s.kind, s.time_axis, s.layer) for s in facts.states.values()} == {
            (sc.StateKind.KV, 2, 0),
            (sc.StateKind.KV, 2, 1),
        }
        assert facts.loss == "cross_entropy"
        # Statistics are of a recurrence, and it takes neither masks nor segments.
        assert facts.missing.keys() == {sc.Capability.STATISTICS, sc.Capability.MASK, sc.Capability.SEGMENTS}


class DropsItsCache(TransformerLanguageModel):
    """Culprit: every call starts with an empty cache."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.set_states(None)
        return super().forward(inputs)


class ClearsItsCacheEvery12Tokens(TransformerLanguageModel):
    """Culprit: keys and values are thrown away every 12 tokens, wherever calls are cut."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = []
        for token in inputs.split(1, dim=1):
            if self._states and self._states["layers.0.k"].shape[2] == 12:
                self.set_states(None)
            outputs.append(super().forward(token))
        return torch.cat(outputs, dim=1)


class TestCulprits:
    @pytest.mark.parametrize(
        ("culprit", "caught"),
        [(DropsItsCache, {"D4.reach", "D4.readout"}), (ClearsItsCacheEvery12Tokens, {"D4.reach"})],
    )
    def test_a_cache_that_is_lost_is_caught(self, culprit: type[TransformerLanguageModel], caught: set[str]) -> None:
        torch.manual_seed(0)
        inputs = ids(18, 90)
        healthy, broken = TransformerLanguageModel(SMALL), culprit(SMALL)
        broken.load_state_dict(healthy.state_dict())
        rows = ["S0", "S1", "S2", "S3", "D1", "D4"]
        reports = [sc.check_model(sc.wrap(m, training_length=16), inputs=inputs, only=rows) for m in (healthy, broken)]
        failed = [{part.id for row in one for part in row.parts if part.status is sc.Status.FAIL} for one in reports]
        assert failed[0].isdisjoint({"D4.reach", "D4.readout"})
        assert failed[1] - failed[0] == caught
        reach = next(part for part in reports[1]["D4"].parts if part.id == "D4.reach")
        assert reach.measurements[0].value == 0
        assert "at state the output" in reach.reason

    @pytest.mark.parametrize(
        ("fault", "severity", "caught"),
        [
            ("none", None, set()),
            ("not-carried", None, {"D4.reach", "D4.readout"}),
            ("reset-every-k", 12, {"D4.reach"}),
            ("shared-across-batch", None, {"S2.isolation", "D4.reach", "D4.readout"}),
            ("non-deterministic", None, {"S3.difference"}),
            ("nan-at-step-k", 40, {"S1.nonfinite", "D1.nonfinite"}),
        ],
    )
    def test_faults_can_be_planted_in_a_cache(
        self, model: TransformerLanguageModel, fault: str, severity: float | None, caught: set[str]
    ) -> None:
        wrapped = sc.wrap(model, training_length=16)
        rows = ["S0", "S1", "S2", "S3", "D1", "D4"]
        report = sc.check_model(plant(wrapped, fault, severity=severity), inputs=ids(18, 90), only=rows)
        losses = {"D4.perplexity", "D4.benefit"}  # an untrained model's: left to chance
        failed = {part.id for row in report for part in row.parts if part.status is sc.Status.FAIL}
        assert failed - losses == caught

    def test_a_fault_of_a_recurrence_is_refused(self, model: TransformerLanguageModel) -> None:
        with pytest.raises(
            UsageError, match=r"'saturated' sits in a recurrent state, and .* has none; a cache can have"
        ):
            plant(sc.wrap(model), "saturated")


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((FOLDER / "training.json").read_text())


class TestShipped:
    def test_the_files_are_what_the_record_says(self, record: dict) -> None:
        model = load_shipped(FOLDER)
        assert isinstance(model, TransformerLanguageModel)
        assert weights_digest(model.state_dict()) == record["weights_digest"]
        assert record["parameters"] == sum(p.numel() for p in model.parameters()) <= 1_000_000
        assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4_000_000
        with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
            header = file.metadata()
        config = json.loads((FOLDER / "config.json").read_text())
        assert header["statecheck.model"] == config["model"] == record["model"] == "reference-transformer"
        assert json.loads(header["statecheck.config"]) == config["config"]
        assert config["training_length"] == record["settings"]["window"]
        found = evaluate_shipped(FOLDER, TEXT_FOLDER)
        assert found["evaluation_loss"] == pytest.approx(record["evaluation_loss"], abs=1e-4)

    def test_it_was_trained_for_10_000_steps_and_learned_more_than_frequencies(self, record: dict) -> None:
        rows = read_log(FOLDER / "training_log.jsonl")
        assert rows[-1]["step"] == record["steps"] == 10_000
        assert record["validation_loss"] < record["unigram_entropy"]["validation"] - 0.5

    @pytest.mark.slow
    def test_the_suite_judges_it_and_leaves_out_what_a_cache_can_not_have(self) -> None:
        subject = resolve(Request("reference-transformer"))
        report = sc.check_model(subject.model, training_log=subject.training_log)  # on the bundled text
        statuses = {row.id: row.status for row in report}
        absent = {id for id, status in statuses.items() if status is sc.Status.NOT_APPLICABLE}
        assert absent == ONE_COMPONENT | NO_RECURRENT_STATE
        assert {statuses[id] for id in statuses.keys() - absent} == {sc.Status.PASS}
        assert report.verdict == "PASS"
        parts = {part.id: part.status for row in report for part in row.parts}
        assert parts["D1.growth"] is parts["S2.dependence"] is parts["S1.magnitude"] is sc.Status.NOT_APPLICABLE
        assert parts["D4.reach"] is parts["D4.readout"] is parts["D4.benefit"] is sc.Status.PASS
