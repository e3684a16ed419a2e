from lightning_core.server.main import main

if __name__ == "__main__":
    raise SystemExit(main())
