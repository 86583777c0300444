"""Weight-only INT8/INT4: packing, the layers that hold packed weights, and walking a network to swap them in."""
