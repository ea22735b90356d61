"""Meshes whose boundary parts have names."""
