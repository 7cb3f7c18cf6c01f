/**
 * Hooks for React 18 and newer.
 * @module tidewire/react
 */
export * from '../../types/react/index.js';
