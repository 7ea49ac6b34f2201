"""From a sentence to a moving 3D scene: an independent implementation of Dream-in-4D.

`import dream4d` loads nothing heavy; each module is imported by its own name, e.g. ``from dream4d.scene import Scene``.
"""

__version__ = "0.1.0"
