"""One line for whatever goes wrong between this machine and the Hub."""

from mmfusion.model.errors_mmfusion import HubError, explain, explained, recognise

__all__ = ["HubError", "explain", "explained", "recognise"]
