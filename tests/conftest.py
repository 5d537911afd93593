"""What holds for all tests: live tests need a machine that can record, and CI insists on them where it has one."""

from __future__ import annotations

import os
from collections.abc import Generator

import hypothesis
import pytest

# How long one example takes says something of the machine, and of what is imported first: pytest's timeout ends what hangs.
hypothesis.settings.register_profile("tlscap", deadline=None)
hypothesis.settings.load_profile("tlscap")

BTF = "/sys/kernel/btf/vmlinux"
collect_ignore = ["sample_project"]  # its tests are run by test_pytest_plugin.py

MUST_RUN = bool(os.environ.get("TLSCAP_REQUIRE_LIVE"))


def why_not_live() -> str:
    """What this machine lacks to record; empty when nothing."""
    if os.geteuid() != 0:
        return "recording needs root"
    if not os.access(BTF, os.R_OK):
        return f"the kernel offers no BTF ({BTF})"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything under tests/live, and skip it where it can't run."""
    reason = why_not_live()
    for item in items:
        if "live" in item.path.parent.parts:
            item.add_marker(pytest.mark.live)
        if reason and item.get_closest_marker("live"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With TLSCAP_REQUIRE_LIVE, a live test that is skipped has failed; but not for a program that no mirror has."""
    report = yield
    required = item.get_closest_marker("live") and "can't be fetched" not in str(report.longrepr)
    if MUST_RUN and required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped, but TLSCAP_REQUIRE_LIVE is set: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole live module that skips itself."""
    report = yield
    if MUST_RUN and report.skipped and "live" in collector.path.parent.parts:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid}: skipped, but TLSCAP_REQUIRE_LIVE is set: {report.longrepr}"
    return report
