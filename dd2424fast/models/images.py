"""Models of images."""

import numpy as np

from ..configuration import positive_integer, real_in
from ..nn import (
    BatchNorm,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
)
from ..nn.sequential import image_shape


class PatchifyNet(Sequential):
    """A convolution of patches that do not overlap, and a multi-layer perceptron on its result: the ConvNet of the
    course's third assignment.

    Parameters
    ----------
    patch : int
        Height and width of the patches; divides the image's.
    filters : int
    hidden : int
        Units of the hidden layer.
    classes : int
    image : (int, int, int)
        Height, width and channels.
    init : {"default", "he", "glorot"}
        See nn.Linear.
    dtype : {"float32", "float64"}
    seed : int, optional
    """

    def __init__(
        self,
        patch=4,
        filters=64,
        hidden=512,
        classes=10,
        image=(32, 32, 3),
        init="default",
        *,
        dtype="float32",
        seed=None,
    ):
        height, width, channels = image_shape(image)
        patch = positive_integer("patch", patch)
        if height % patch or width % patch:
            raise ValueError(f"patch: expected a divisor of the image's height and width {height, width}, got {patch}")
        features = (height // patch) * (width // patch) * positive_integer("filters", filters)
        super().__init__(
            Conv2d(channels, filters, patch, patch, init=init),
            ReLU(),
            Flatten(),
            Linear(features, positive_integer("hidden", hidden), init=init),
            ReLU(),
            Linear(hidden, positive_integer("classes", classes), init=init),
            image=image,
            dtype=dtype,
            seed=seed,
        )


class ConvNet(Sequential):
    """Blocks of 3 x 3 convolutions with ReLU, each ended by a max-pool that halves the image; then a hidden layer, or
    the mean over the image.

    Parameters
    ----------
    channels : sequence of int
        Of each block's convolutions.
    hidden : int or None
        Units of the layer that reads the last block's pixels; None: the classes read the mean of each channel over the
        image instead, and the model has far fewer parameters.
    classes : int
    batch_norm : bool
        Behind every convolution, which then has no bias.
    convs_per_block : int
    image : (int, int, int)
        Height, width and channels.
    dropout : float
        Probability in [0, 1): behind every block and behind the hidden layer.
    init : {"default", "he", "glorot"}
        See nn.Linear.
    dtype : {"float32", "float64"}
    seed : int, optional
    """

    def __init__(
        self,
        channels=(32, 64),
        hidden=128,
        classes=10,
        batch_norm=False,
        convs_per_block=1,
        image=(32, 32, 3),
        dropout=0.0,
        init="default",
        *,
        dtype="float32",
        seed=None,
    ):
        height, width, inputs = image_shape(image)
        if not np.iterable(channels) or isinstance(channels, str):
            like = f"({channels},)" if hasattr(channels, "__index__") else "(32, 64)"
            raise TypeError(f"channels: expected a sequence of each block's channels such as {like}, got {channels!r}")
        channels = tuple(positive_integer(f"channels[{i}]", width) for i, width in enumerate(channels))
        if not channels:
            raise ValueError("channels: expected at least one block, got none")
        self.config["channels"] = channels
        most = min(height, width).bit_length() - 1
        if len(channels) > most:
            raise ValueError(
                f"channels: expected at most {most} blocks, since each halves images of {height} x {width}, "
                f"got {len(channels)}"
            )
        positive_integer("convs_per_block", convs_per_block)
        positive_integer("classes", classes)
        dropout = real_in("dropout", dropout, 0, 1, include_high=False)
        layers = []
        for outputs in channels:
            for _ in range(convs_per_block):
                layers.append(Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm, init=init))
                if batch_norm:
                    layers.append(BatchNorm(outputs))
                layers.append(ReLU())
                inputs = outputs
            layers.append(MaxPool2d(2))
            if dropout:
                layers.append(Dropout(dropout))
            height, width = height // 2, width // 2
        if hidden is None:
            layers.append(GlobalAvgPool2d())
        else:
            positive_integer("hidden", hidden)
            layers += [Flatten(), Linear(height * width * inputs, hidden, init=init), ReLU()]
            if dropout:
                layers.append(Dropout(dropout))
            inputs = hidden
        super().__init__(*layers, Linear(inputs, classes, init=init), image=image, dtype=dtype, seed=seed)


class ResNet(Sequential):
    """Residual networks of two 3 x 3 convolutions a block (He et al. 2015, arXiv:1512.03385).

    The depth tells the form. 6 n + 2 (20, 32, 44, 56, 110): that for CIFAR-10, section 4.2, three stages of n blocks
    with 16, 32 and 64 channels. 18 and 34: that for ImageNet, table 1, which begins with a 7 x 7 convolution of stride
    2 and a pooling, and has four stages of 64 to 512 channels. Layers have torchvision's names, `conv1`, `bn1`,
    `layer1.0.conv1`, ..., `layer2.0.downsample.0`, ..., `fc`, so weights of its `resnet18` and `resnet34` fit.

    Where a stage changes the shape, the shortcut is a 1 x 1 convolution with batch normalisation (the paper's option B)
    in both forms: one kind of block and one set of names, for 2,560 weights more than option A's padding with zeros in
    the smaller form.

    Parameters
    ----------
    depth : int
    classes : int
    image : (int, int, int), optional
        Height, width and channels; default: (32, 32, 3), of the ImageNet form (224, 224, 3).
    init : {"he", "default", "glorot"}
        Of the convolutions, see nn.Linear.
    dtype : {"float32", "float64"}
    seed : int, optional
    """

    def __init__(self, depth=20, classes=10, image=None, init="he", *, dtype="float32", seed=None):
        positive_integer("depth", depth)
        positive_integer("classes", classes)
        blocks, widths = _IMAGENET.get(depth, (((depth - 2) // 6,) * 3, (16, 32, 64)))
        if depth not in _IMAGENET and (depth < 8 or depth % 6 != 2):
            raise ValueError(f"depth: expected 18, 34, or 6 n + 2 such as 20, 32 or 56, got {depth}")
        large = depth in _IMAGENET
        image = image_shape(image or ((224, 224, 3) if large else (32, 32, 3)))
        inputs = widths[0]
        layers = {
            "conv1": Conv2d(image[2], inputs, *((7, 2, 3) if large else (3, 1, 1)), bias=False, init=init),
            "bn1": BatchNorm(inputs),
            "relu": ReLU(),
        }
        if large:
            layers["maxpool"] = MaxPool2d(3, 2, 1)
        for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            stage = []
            for j in range(count):
                stage.append(_block(inputs, width, 2 if i and not j else 1, init))
                inputs = width
            layers[f"layer{i + 1}"] = Sequential(*stage)
        layers |= {"avgpool": GlobalAvgPool2d(), "fc": Linear(inputs, classes)}
        super().__init__(*layers.values(), names=tuple(layers), image=image, dtype=dtype, seed=seed)


_IMAGENET = {18: ((2, 2, 2, 2), (64, 128, 256, 512)), 34: ((3, 4, 6, 3), (64, 128, 256, 512))}  # blocks, channels


def _block(inputs, outputs, stride, init):
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = Sequential(Conv2d(inputs, outputs, 1, stride, bias=False, init=init), BatchNorm(outputs))
    return Residual(
        Conv2d(inputs, outputs, 3, stride, 1, bias=False, init=init),
        BatchNorm(outputs),
        ReLU(),
        Conv2d(outputs, outputs, 3, padding=1, bias=False, init=init),
        BatchNorm(outputs),
        shortcut=shortcut,
        names=("conv1", "bn1", "relu", "conv2", "bn2", "downsample"),
    )
