"""Makers of the picture data that the studies read: Fashion-MNIST in contexts, emoji in styles."""
