"""An embedded Auto Labeler backend with sample data, for trying and testing the exporter."""
