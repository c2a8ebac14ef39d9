"""Tests of the policy by which roles are restarted."""

from deploy.supervisor import MAX_BACKOFF_SECONDS, MAX_QUICK_FAILURES, QUICK_FAILURE_SECONDS, RestartPolicy


def test_a_role_that_fails_at_once_again_and_again_is_given_up() -> None:
    """Each quick failure doubles the wait, and the fifth in a row is the last."""
    policy = RestartPolicy()
    waits = [policy.backoff(1.0) for _ in range(MAX_QUICK_FAILURES)]
    assert waits == [0.5, 1.0, 2.0, 4.0, None]
    assert policy.restarts == MAX_QUICK_FAILURES - 1


def test_a_role_that_lived_is_restarted_soon_however_often() -> None:
    """A life longer than the threshold makes good for the failures before it."""
    policy = RestartPolicy()
    for _ in range(3):
        assert policy.backoff(1.0) is not None
        assert policy.backoff(1.0) is not None
        assert policy.backoff(QUICK_FAILURE_SECONDS) == 0.5
    assert policy.restarts == 9


def test_no_wait_is_longer_than_the_bound() -> None:
    """Back-off is bounded."""
    policy = RestartPolicy()
    waits = [policy.backoff(QUICK_FAILURE_SECONDS - 1) for _ in range(MAX_QUICK_FAILURES - 1)]
    assert all(wait is not None and wait <= MAX_BACKOFF_SECONDS for wait in waits)
