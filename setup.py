"""Packaging of git_scale: `pip install -e '.[test]'`."""

from pathlib import Path

from setuptools import find_packages, setup

# The ranges are those that the tests have been run with, at both ends (docs/versions.md).
REQUIREMENTS = [
    "torch>=2.11,<2.14",  # 2.10 closed the last weights_only bypass (CVE-2026-24747); DeepSpeed 0.19 knows up to 2.13
    "deepspeed>=0.19.8,<0.20",  # its inner layout of sums and shares is read, tests/parallel/test_zero_stages.py
    "megatron-core>=0.16,<0.17",  # its tensor-parallel layers; the API of its linear layers moves between minors
    "timm>=1.0.21,<1.1",  # 1.0.20 reads numbers off meta tensors while it builds a model
    "torchvision",  # imported by timm; git_scale.models.encoders cures its CUDA build beside a CPU-only torch
    "webdataset>=1.0.2,<1.1",
    "sentencepiece>=0.2,<0.3",
    "tokenizers>=0.23.1,<1",  # transformers 5.23 takes no earlier one, nor of safetensors
    "pydantic>=2.7,<3",
    "pyyaml>=6",
    "numpy>=1.26",
    "pillow>=11",
    "simplejpeg>=1.9,<2",  # libjpeg-turbo with its warnings, which Pillow drops: damaged JPEGs are noticed
    "safetensors>=0.8",
    "tensorboard>=2.16",
    "psutil>=5.9",
    "xxhash>=3.4",
    "tqdm>=4.60",
    "rapidfuzz>=3.9,<4",  # edit distances of ANLS and of recognised words
    "lmdb>=1.6.2,<4",  # scene text is published as LMDB
    "pycocoevalcap>=1.2,<2",  # BLEU, ROUGE-L and CIDEr-D as the benchmarks compute them; no Java for these
]

EXTRAS = {
    "demo": ["scikit-learn>=1.4"],  # the handwritten digits that the demo is made of
    "test": ["scikit-learn>=1.4", "pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.5"],
    "lint": ["ruff==0.17.6", "mypy==2.4.1", "types-PyYAML", "types-psutil"],
    "hf": ["transformers>=5.23,<6"],  # 5.23: the first release with GIT's loss fixed; verifies an export
    "study": ["matplotlib>=3.9,<4"],  # pictures of tools/study.py
    "video": ["av>=14.1,<19"],  # reads video files; 14.1 knows how a frame is turned
}

setup(
    name="git_scale",
    version="0.1.0",
    description="Distributed training of GIT and GIT2 image-to-text transformers",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["git_scale", "git_scale.*"]),
    package_data={
        "git_scale": [
            "py.typed",
            "configs/*.yaml",
            "evaluation/*.html",
            "monitoring/*.yaml",
            "studies/*.yaml",
        ]
    },
    python_requires=">=3.11,<3.13",
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
