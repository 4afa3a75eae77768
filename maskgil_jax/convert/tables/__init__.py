"""Conversion tables, one module per published code base: parameter paths <-> tensor names, and sizes from shapes."""
