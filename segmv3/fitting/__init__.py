"""Fitting a net to the speed of a device: layer after layer is narrowed by its measured latency (NetAdapt)."""
