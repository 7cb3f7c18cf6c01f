// Checks TypeScript text with the compiler, with the library files read once.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

/** @type {ts.CompilerOptions} */
const OPTIONS = {
  strict: true, noEmit: true, target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext, lib: ['lib.es2023.d.ts', 'lib.dom.d.ts', 'lib.dom.iterable.d.ts'], types: [], allowJs: true, skipLibCheck: true, // so give contracts names without .d
};
const FOLDER = fileURLToPath(new URL('.', import.meta.url));
/** @type {Map<string, ts.SourceFile | undefined>} */
const libraries = new Map();

/**
 * Returns what the compiler reports for some files, each as `file:line: message`.
 * @param {Record<string, string>} files By name; all in the folder of this file.
 */
export function compilerErrors(files) {
  const host = ts.createCompilerHost(OPTIONS);
  const paths = new Map(Object.entries(files).map(([name, text]) => [`${FOLDER}${name}`, text]));
  const { getSourceFile } = host;
  host.getSourceFile = (path, version) => {
    const text = paths.get(path);
    if (text !== undefined) return ts.createSourceFile(path, text, version, true);
    if (!libraries.has(path)) libraries.set(path, getSourceFile.call(host, path, version));
    return libraries.get(path);
  };
  host.fileExists = (path) => paths.has(path) || ts.sys.fileExists(path);
  host.readFile = (path) => paths.get(path) ?? (ts.sys.fileExists(path) ? readFileSync(path, 'utf8') : undefined);
  const program = ts.createProgram([...paths.keys()], OPTIONS, host);
  return ts.getPreEmitDiagnostics(program).map(({ file, start, messageText }) => {
    const line = file && start !== undefined ? file.getLineAndCharacterOfPosition(start).line + 1 : 0;
    return `${file?.fileName.replace(FOLDER, '')}:${line}: ${ts.flattenDiagnosticMessageText(messageText, ' ')}`;
  });
}

/**
 * Returns what a file declares at its top level: names of exported types, and the kind of everything else.
 * @param {string} text
 */
export function declarations(text) {
  const { statements } = ts.createSourceFile('contract.ts', text, ts.ScriptTarget.ES2022, true);
  return statements.map((statement) => {
    const isType = ts.isInterfaceDeclaration(statement) || ts.isTypeAliasDeclaration(statement);
    return isType ? statement.name.text : ts.SyntaxKind[statement.kind];
  });
}
