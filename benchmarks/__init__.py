"""What the workflow costs, beside what people use today."""
