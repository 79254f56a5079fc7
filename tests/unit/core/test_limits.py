"""What a tenant's limits may be set to."""

import pytest

from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.core.limits import LIMITS, MAX_LIMIT, MIB, TenantLimits, check_limit


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_can_be_the_least_the_most_the_default_and_taken_back(name: str) -> None:
    least, most = LIMITS[name]
    for value in (least, most, getattr(TenantLimits(), name), None):
        check_limit(name, value)


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_beyond_its_bounds_is_refused(name: str) -> None:
    least, most = LIMITS[name]
    for value in (least - 1, most + 1, -MAX_LIMIT):
        with pytest.raises(UnprocessableError, match=f"`{name}` is between {least} and {most}") as caught:
            check_limit(name, value)
        assert caught.value.error_code == "invalid_limit"


def test_whoever_would_stop_a_tenant_by_a_limit_is_told_how() -> None:
    with pytest.raises(UnprocessableError, match="to stop a tenant, suspend it"):
        check_limit("requests_per_minute", 0)


def test_no_other_limit_is_known() -> None:
    with pytest.raises(UnprocessableError, match="`requests` is not a limit; known are requests_per_minute") as caught:
        check_limit("requests", 1)
    assert caught.value.error_code == "invalid_limit"


def test_storage_is_said_in_mebibytes() -> None:
    assert TenantLimits(storage_mib=3).storage_bytes == 3 * MIB
    assert TenantLimits(principal_storage_mib=2).principal_storage_bytes == 2 * MIB
