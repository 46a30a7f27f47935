"""`python -m recipes.benchmark …`, from the folder above."""

from recipes.benchmark.main import main

if __name__ == "__main__":
    main()
