from collections import Counter

from training.affect.jobs import plan
from training.affect.recipe import affect_small


def test_a_study_that_is_stopped_has_what_matters_most() -> None:
    jobs = plan(affect_small())
    assert Counter(job.variant for job in jobs) == {"mean": 25, "gru": 25, "none": 25, "learned": 5}
    assert len(set(jobs)) == len(jobs)
    assert Counter(job.variant for job in jobs[:15]) == {"mean": 5, "gru": 5, "none": 5}
    assert Counter(job.variant for job in jobs[:35]) == {"mean": 25, "gru": 5, "none": 5}
    assert Counter(job.variant for job in jobs[:40]) == {"mean": 25, "gru": 5, "none": 5, "learned": 5}
    assert Counter(job.variant for job in jobs[:60]) == {"mean": 25, "gru": 15, "none": 15, "learned": 5}
    assert {job.seed for job in jobs if job.ablate} == {0}
    assert [job.fold for job in jobs[:5]] == [0, 1, 2, 3, 4]
