from collections import Counter
from dataclasses import replace

from training.affect.jobs import plan
from training.affect.recipe import affect_small


def test_a_study_that_is_stopped_has_what_matters_most() -> None:
    jobs = plan(affect_small())
    assert Counter(job.variant for job in jobs) == {"mean": 25, "gru": 10, "none": 10, "learned": 5}
    assert len(set(jobs)) == len(jobs)
    assert Counter(job.variant for job in jobs[:15]) == {"mean": 5, "gru": 5, "none": 5}
    assert Counter(job.variant for job in jobs[:35]) == {"mean": 25, "gru": 5, "none": 5}
    assert Counter(job.variant for job in jobs[:40]) == {"mean": 25, "gru": 5, "none": 5, "learned": 5}
    assert Counter(job.variant for job in jobs[:45]) == {"mean": 25, "gru": 10, "none": 5, "learned": 5}
    assert {job.seed for job in jobs if job.ablate} == {0}
    assert [job.fold for job in jobs[:5]] == [0, 1, 2, 3, 4]


def test_rivals_have_as_many_seeds_as_they_are_given_and_no_more_than_there_are() -> None:
    for wanted, jobs in ((1, 5), (4, 20), (5, 25), (9, 25)):
        counts = Counter(job.variant for job in plan(replace(affect_small(), rival_seeds=wanted)))
        assert counts == {"mean": 25, "gru": jobs, "none": jobs, "learned": 5}


def test_every_seed_of_a_variant_is_judged_on_every_fold() -> None:
    jobs = plan(affect_small())
    for variant, seeds in (("mean", range(5)), ("gru", range(2)), ("none", range(2)), ("learned", range(1))):
        found = {(job.seed, job.fold) for job in jobs if job.variant == variant}
        assert found == {(seed, fold) for seed in seeds for fold in range(5)}
