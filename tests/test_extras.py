"""Packages of extras: a remedy where one is missing, and no report of their use that nobody agreed to."""

import importlib

import pytest

from tests.deploy.exporting import skip_without
from vitrail.errors import VitrailError
from vitrail.extras import import_extra, send_no_usage_reports


def test_a_missing_package_is_named_with_its_remedy():
    with pytest.raises(VitrailError, match=r"nowhere is not installed; .* `pip install 'vitrail\[export\]'`$"):
        import_extra("nowhere.inside", "export")


@skip_without("openvino", "openvino_telemetry")
@pytest.mark.parametrize(("answer", "agreed"), [(None, False), ("0", False), ("1", True), ("?", False)])
def test_use_is_reported_only_if_the_user_agreed(answer, agreed, tmp_path, monkeypatch):
    checks = importlib.import_module("openvino_telemetry.utils.opt_in_checker")
    send_no_usage_reports()
    checker = checks.OptInChecker()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    if answer is not None:
        checker.create_or_check_consent_dir()
        (tmp_path / "intel" / "openvino_telemetry").write_text(answer)
    results = checks.ConsentCheckResult
    assert checker.check(False, disable_in_ci=True) is (results.ACCEPTED if agreed else results.DECLINED)


@skip_without("openvino", "openvino_telemetry")
def test_openvino_is_imported_without_consent():
    import_extra("openvino", "export")
    telemetry = importlib.import_module("openvino_telemetry").Telemetry()
    checks = importlib.import_module("openvino_telemetry.utils.opt_in_checker")
    stored = checks.OptInChecker().check(False, disable_in_ci=True) is checks.ConsentCheckResult.ACCEPTED
    assert telemetry.consent == stored
