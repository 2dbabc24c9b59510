"""Augmentation of images on the fly."""

import math

import numpy as np

from .. import kernels
from ..configuration import Configured, array_of, integer_in, real_in

MIXING = 2  # the stream of a batch's weight; the kernel draws from the key itself and from stream 1


class Augment(Configured):
    """Changes each batch of images before an update: for `Trainer.fit(augment=...)`, or called with (x, key).

    What an image becomes is a pure function of the trainer's seed, the update and its place in the batch. The formula
    and the order are those of `kernels.augment_images`; brightness, noise, fill, mean and std are in the units of the
    images as they come.

    Parameters
    ----------
    flip : bool or float
        The probability of a horizontal flip; True is 1/2.
    shift : int
        Largest shift in pixels, in each direction.
    cutout : int
        Side of a square that hides a part of each image, in pixels (DeVries and Taylor 2017, arXiv:1708.04552).
    contrast : float in [0, 1]
        Largest relative change of the contrast.
    brightness : float
        Largest change of the brightness.
    noise : float
        Standard deviation of what is added to each number.
    mixup : float
        Mix image n with image N - 1 - n of the batch, with a weight drawn from Beta(mixup, mixup) for each batch, and
        their targets alike (Zhang et al. 2018, arXiv:1710.09412; they use 0.1 to 1). 0 mixes nothing.
    mean, std : float, or one a channel, optional
        Standardise in the same pass: images of uint8 then become float32.
    fill : float, or one a channel, optional
        Stands outside of what was shifted, and in the square; default: the mean where one is given, else 0.
    image : (int, int, int), optional
        (height, width, channels) of rows of features (batch, height * width * channels).

    Notes
    -----
    With mixup, integer labels become rows of probabilities, which `losses.CrossEntropy` and `BinaryCrossEntropy` take;
    the accuracy counts the class of the larger share.
    """

    def __init__(
        self,
        flip=False,
        shift=0,
        cutout=0,
        contrast=0.0,
        brightness=0.0,
        noise=0.0,
        mixup=0.0,
        mean=None,
        std=None,
        fill=None,
        image=None,
    ):
        self.flip = 0.5 if flip is True else 0.0 if flip is False else real_in("flip", flip, 0, 1)
        self.shift = integer_in("shift", shift, 0)
        self.cutout = integer_in("cutout", cutout, 0)
        self.contrast = real_in("contrast", contrast, 0, 1)
        self.brightness = real_in("brightness", brightness, 0, math.inf, include_high=False)
        self.noise = real_in("noise", noise, 0, math.inf, include_high=False)
        self.mixup = real_in("mixup", mixup, 0, math.inf, include_high=False)
        self.mean, self.std = _channels("mean", mean), _channels("std", std)
        if self.std is not None and not np.all(self.std > 0):
            raise ValueError(f"std: expected numbers above 0, got {std!r}")
        self.fill = _channels("fill", fill)
        if image is not None:
            if not isinstance(image, tuple | list) or len(image) != 3:
                raise ValueError(f"image: expected (height, width, channels), got {image!r}")
            image = tuple(integer_in(f"image[{i}]", size, 1) for i, size in enumerate(image))
        self.image = image

    def __call__(self, x, key):
        """Return the batch as it is trained on.

        Parameters
        ----------
        x : ndarray of shape (batch, height, width, channels), uint8, float32 or float64
            Or (batch, features), where `image` was given.
        key : int
            From `kernels.stream_key`; the trainer gives one for each update.

        Returns
        -------
        ndarray of x's shape; of its dtype, or float32 where uint8 was standardised
        """
        return self._run(
            x,
            key,
            flip=self.flip,
            shift=self.shift,
            cutout=self.cutout,
            contrast=self.contrast,
            brightness=self.brightness,
            noise=self.noise,
            fill=self._fill(x),
            mix=self._weight(key),
        )

    def targets(self, y, key, classes):
        """Return the targets of the batch that the same key makes: y itself without mixup.

        Parameters
        ----------
        y : ndarray of shape (batch,), labels, or floats of shape (batch, ...)
        key : int
        classes : int
            How many there are.

        Returns
        -------
        ndarray of shape (batch, classes), float64, or of y's shape
        """
        if not self.mixup:
            return y
        y, weight = array_of("y", y), self._weight(key)
        if y.dtype.kind in "iu":
            if y.ndim != 1 or not np.all((y >= 0) & (y < classes)):
                raise ValueError(f"y: expected labels from 0 to {classes - 1} to be mixed, one a row, got {y}")
            y = np.eye(classes)[y]
        return weight * y + (1 - weight) * y[::-1]

    def standardize(self, x):
        """Return images standardised as `mean` and `std` say and else as they are: for validation, and for use."""
        return self._run(x, 0)

    def _run(self, x, key, **arguments):
        rows = self.image is not None and getattr(x, "ndim", 0) == 2
        if rows and x.shape[1] != math.prod(self.image):
            raise ValueError(
                f"x: expected shape (batch, {math.prod(self.image)}) for image={self.image}, got {x.shape}"
            )
        images = x.reshape(-1, *self.image) if rows else x
        out = kernels.augment_images(images, key, mean=self.mean, std=self.std, **arguments)
        return out.reshape(x.shape) if rows else out

    def _fill(self, x):
        if self.fill is not None or self.mean is None:
            return 0 if self.fill is None else self.fill
        return np.rint(self.mean) if getattr(x, "dtype", None) == np.uint8 else self.mean

    def _weight(self, key):
        if not self.mixup:
            return 1.0
        from scipy.special import betaincinv

        uniform = kernels.random_uniform(kernels.stream_key(key, MIXING, 0), (), np.float64)
        return float(betaincinv(self.mixup, self.mixup, uniform))


def _channels(name, value):
    """None, or float64: one number, or one for each of an image's channels."""
    if value is None:
        return None
    numbers = array_of(name, value)
    if numbers.dtype.kind not in "fiu" or numbers.ndim > 1 or not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(f"{name}: expected a finite number, or one for each channel, got {value!r}")
    return numbers.astype(np.float64)
