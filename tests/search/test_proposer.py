from __future__ import annotations

import itertools

import pytest

from autoq.core.policy import Policy
from autoq.core.scheme import Scheme
from autoq.search.problem import Problem
from autoq.search.proposer import SAMPLERS, Proposal, Proposer
from tests.search.problems import bits, make_problem, make_proposer

LAYERS = [f"l{i}" for i in range(6)]


def outcome(policy: Policy) -> tuple[float, float]:
    """Two objectives that pull apart, and differ from layer to layer."""
    weights = [(i + 1) * scheme.weight_bits for i, (_, scheme) in enumerate(policy.items_)]
    return -float(sum(weights)), float(bits(policy))


def drive(proposer: Proposer, count: int, batch: int = 8, fail: int = 0) -> list[Proposal]:
    """Ask and tell ``count`` proposals; every ``fail``-th one fails."""
    done: list[Proposal] = []
    while len(done) < count:
        asked = proposer.ask(min(batch, count - len(done)))
        if not asked:
            break
        for proposal in asked:
            done.append(proposal)
            failed = fail and len(done) % fail == 0
            proposer.tell(proposal, None if failed else outcome(proposal.policy), 0.1 if len(done) % 5 == 0 else 0.0)
    return done


def two_objectives(layers: list[str] = LAYERS, **changes: object) -> Problem:
    return make_problem(layers, objectives=("metric", "size"), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_proposes_the_same_and_never_twice(sampler: str) -> None:
    problem = two_objectives()
    runs = [drive(make_proposer(problem, sampler, seed=seed), 60, fail=7) for seed in (1, 1, 2)]
    first, again, other = ([proposal.policy for proposal in run] for run in runs)
    assert first == again
    assert first != other
    assert len(set(first)) == 60
    assert [proposal.origin for proposal in runs[0]] == [proposal.origin for proposal in runs[1]]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds_come_first_and_in_order_whatever_the_batch(sampler: str) -> None:
    problem = two_objectives()
    for batch in (1, 3, 8):
        done = drive(make_proposer(problem, sampler), 10, batch=batch)
        assert [proposal.origin for proposal in done[:4]] == [
            "seed:w8",
            "seed:w4",
            "seed:w8a8@minmax",
            "seed:w4a8@mse",
        ]
        assert [len({str(s) for _, s in proposal.policy.items_}) for proposal in done[:4]] == [1, 1, 1, 1]
        assert {proposal.origin for proposal in done[4:]} == {f"sampler:{sampler}"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_tiny_space_is_exhausted(sampler: str) -> None:
    problem = two_objectives(["a", "b"], schemes=[Scheme.parse(text) for text in ("float32", "w8", "w4")])
    done = drive(make_proposer(problem, sampler), 100)
    texts = ("float32", "w8", "w4")
    assert {tuple(p.policy.to_text().values()) for p in done} == set(itertools.product(texts, texts))
    assert len(done) == 9


def test_a_space_of_one_policy_and_one_where_seeds_coincide() -> None:
    w8 = Scheme.parse("w8")
    only = two_objectives(["a", "b"], schemes=[w8], seeds=[w8])
    assert only.choices == {}
    assert [proposal.policy.to_text() for proposal in drive(make_proposer(only), 10)] == [{"a": "w8", "b": "w8"}]
    # Both seeds become w8: the second is not proposed again.
    two = two_objectives(["a"], schemes=[Scheme.parse("float32"), w8], seeds=[w8, Scheme.parse("w4")])
    assert next(p.origin for p in drive(make_proposer(two), 10)) == "seed:w8"
    assert len(drive(make_proposer(two), 10)) == 2


def test_policies_that_the_graph_makes_equal_are_proposed_once() -> None:
    problem = two_objectives(["a", "b", "c"])
    proposer = Proposer(
        problem.choices,
        # As where all layers read one tensor: the first decides.
        lambda chosen: Policy.uniform(["a", "b", "c"], chosen["a"]),
        seeds=problem.uniform_seeds(),
        objectives=2,
        sampler="nsga2",
        seed=0,
    )
    done = drive(proposer, 100)
    assert len(done) == len({proposal.policy for proposal in done}) == 5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_replaying_what_was_told_gives_the_same_proposals(sampler: str) -> None:
    problem = two_objectives()
    whole = [proposal.policy for proposal in drive(make_proposer(problem, sampler), 48, fail=5)]
    for stopped_at in (3, 8, 21):
        proposer = make_proposer(problem, sampler)
        # The interrupted search asked for whole batches, as the resumed one does from the start.
        assert [p.policy for p in drive(proposer, stopped_at, fail=5)] == whole[:stopped_at]
        again = [proposal.policy for proposal in drive(make_proposer(problem, sampler), 48, fail=5)]
        assert again == whole


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_later_seeds_come_one_each_time_that_is_asked(sampler: str) -> None:
    problem = two_objectives()
    uniform = problem.uniform_seeds()
    assert len(uniform) >= 4

    def made() -> Proposer:
        return Proposer(
            problem.choices,
            problem.complete,
            seeds=uniform[:1],
            # The first is proposed already, and is not proposed again.
            later=[*uniform[2:], uniform[0], uniform[1]],
            objectives=2,
            sampler=sampler,  # type: ignore[arg-type]
            seed=0,
        )

    done = drive(made(), 48)
    origins = [proposal.origin for proposal in done]
    expected = [f"seed:{name}" for name, _ in [uniform[0], *uniform[2:]]]
    assert [origins[0], *origins[8 : 8 * len(expected) : 8]] == expected
    assert [origin for origin in origins if origin.startswith("seed:")] == [*expected, f"seed:{uniform[1][0]}"]
    assert len({proposal.policy for proposal in done}) == 48
    assert [p.policy for p in drive(made(), 48, fail=0)] == [p.policy for p in done]


def test_all_failing_does_not_end_the_search() -> None:
    done = drive(make_proposer(two_objectives()), 40, fail=1)
    assert len({proposal.policy for proposal in done}) == 40
