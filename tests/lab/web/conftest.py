"""The live page is exported with onnx, which Colab lacks."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("onnx") and find_spec("onnxruntime") else ["test_*.py"]
