"""What hardware enforces: page ownership, the reach of DMA, interrupts."""
