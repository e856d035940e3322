from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "eva_utils" / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

setup(
    name="eva_utils",
    version=VERSION,
    description="A PyTorch toolkit for the image-classification assignments of a vision course",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["eva_utils", "eva_utils.*"]),
    install_requires=[
        "torch>=2.6",  # tensors, models, training
        "torchvision>=0.21",  # downloads of datasets, resizing
        "numpy>=1.24",  # drawing the shapes, reading files, seeds
        "matplotlib>=3.9",  # figures
        "torchsummary>=1.5",  # the table of layers
        "tqdm>=4.60",  # the progress bar
        "opencv-python>=4.10",  # drawing the shapes, the colours of a Grad-CAM overlay
        "pillow>=10.3",  # decoding files: it names truncated ones and knows palettes, alpha and EXIF
    ],
    extras_require={
        "test": [
            "pytest>=8",  # runs the tests
            "pytest-xdist>=3.5",  # on two cores
            "ruff>=0.6",  # lint and format
            "mypy>=1.10",  # types
            "setuptools>=70.1",  # the tests install a clone without the network, and this one makes wheels itself
            "grad-cam>=1.5",  # the reference that Grad-CAM is compared with
            "hypothesis>=6",  # property tests
            "ipykernel>=6",  # runs the notebooks
            "markdown-it-py>=3",  # renders a report, to see that names inject nothing
            "papermill>=2.4",  # executes the notebooks with parameters
            "nbformat>=5.2",  # saves what they show
            "torch-lr-finder>=0.2",  # the reference that the learning-rate finder is compared with
            "tensorboard>=2.14",  # reads back what is written for it
            "timm>=1.0",  # other people's models, trained and explained unchanged
            "albumentations>=1.3",  # a pipeline of a student's own
        ],
        "tensorboard": [
            "tensorboard>=2.14",  # write_tensorboard
        ],
        "bench": [
            "grad-cam>=1.5",  # a rival of Grad-CAM
            "torchcam>=0.4",  # another
        ],
    },
)
