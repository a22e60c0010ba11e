"""Drivers of the engines that work runs on."""
