"""A killed run goes on as if nothing had happened: tests/torture.py, in short. make torture does ten times as much."""

import pytest


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_the_same_to_the_bit(script):
    kinds = ['expanded', 'growing', 'rotating']
    lines = script('tests/torture.py', '--kills=20', *kinds).stdout.splitlines()
    assert sorted(line.split()[0] for line in lines if 'the same to the bit' in line) == kinds
