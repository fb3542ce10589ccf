"""The synthetic evaluation, made once."""

import pytest

from moe_lab.evaluation.results import Results
from tests.evaluation.synthetic import build_synthetic_results


@pytest.fixture(scope="session")
def synthetic_results() -> Results:
    return build_synthetic_results()
