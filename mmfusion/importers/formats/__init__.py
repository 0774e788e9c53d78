"""One module per format; `mmfusion.importers.registry` lists them in the order in which they are asked."""
