"""What a recipe will cost, known from configurations alone: nothing is downloaded or computed."""
