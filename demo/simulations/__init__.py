"""The simulated backends of the demos: one module each, with `async def run(api: Api) -> None`."""
