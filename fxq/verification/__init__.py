"""Is an ONNX file, whoever wrote it, what its runtime runs fast? Rules on the file, the runtime's own word, its speed.

>>> report = fxq.verify("model.onnx", "tensorrt", shapes={"x": "1x3x224x224"})
>>> print(report)
>>> assert report.ok

``rules.py`` lists the rules of files, ``executed_rules.py`` those of what the runtimes execute.
"""

from fxq.verification.api import bench, verify
from fxq.verification.bench_report import BenchReport, BenchRow
from fxq.verification.finding import Finding
from fxq.verification.report import VerifyReport

__all__ = ["BenchReport", "BenchRow", "Finding", "VerifyReport", "bench", "verify"]
