"""A pytest plugin whose last line says if the notebooks or the live page were not opened in a browser, and why."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Browser(config))


class Browser:
    def __init__(self, config: pytest.Config):
        self.config, self.reason = config, ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and ("test_browser" in report.nodeid or "test_live" in report.nodeid):
            self.reason = report.longrepr[2].removeprefix("Skipped: ")

    def pytest_unconfigure(self) -> None:
        if self.reason and not hasattr(self.config, "workerinput"):  # pytest-xdist's workers have no terminal
            print(f"NOT TESTED: notebooks or the live page in a browser. {self.reason}", flush=True)
