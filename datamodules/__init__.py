"""Data sets as LightningDataModules; importing this package imports neither torchvision nor scikit-learn."""

from datamodules.cifar import CIFAR10, CIFAR100
from datamodules.fashion_mnist import FashionMNIST
from datamodules.image_datamodule import ImageDataModule
from datamodules.image_folder import ImageFolder
from datamodules.imagenet import ImageNet
from datamodules.imagenet_photos import ImageNetPhotos
from datamodules.mnist_scenes import MNISTScenes

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "ImageNet",
    "ImageNetPhotos",
    "MNISTScenes",
]
