/**
 * The codes of the service.
 * @module tidewire/codes
 */
export * from '../../types/codes.js';
