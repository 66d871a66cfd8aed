"""What is made of scores and images: tables, pictures, reports."""
