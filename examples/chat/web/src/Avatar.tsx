/** The first letters of a name on a colour of its own. */
export function Avatar({ name, isHere }: { name: string; isHere?: boolean }) {
  const tone = [...name].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) % 8, 0);
  return (
    <span className={`avatar tone-${tone}`} data-here={isHere} aria-hidden="true">
      {name.slice(0, 2).toUpperCase()}
    </span>
  );
}
