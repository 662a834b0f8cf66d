"""Schemathesis asks the API what its own description allows, and what it forbids."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from triptych.serving.verbs import VERBS

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
"""All but that what fits is accepted: base64 that is no image fits a schema."""

PATHS = [*(f"/v1/{name}" for name in VERBS), "/v1/search", "/v1/models", "/healthz", "/readyz"]


@pytest.fixture(scope="module")
def operations(server):
    """The description's operations by path, of whose parts each is named in `PATHS`."""
    description = schemathesis.openapi.from_asgi("/openapi.json", server.app)
    found = {result.ok().path: result.ok() for result in description.get_all_operations()}
    assert set(found) == {*PATHS, "/metrics"}
    return found


@pytest.mark.parametrize("path", PATHS)
def test_the_api_is_as_described(operations, path):
    for mode in GenerationMode:
        if mode is GenerationMode.NEGATIVE and operations[path].method == "get":
            continue  # there is nothing to send that could be wrong

        @settings(
            max_examples=8,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operations[path].as_strategy(generation_mode=mode))
        def ask(case):
            case.call_and_validate(checks=CHECKS)

        ask()
